"""Draft heads (EAGLE-3, DFlash, DSpark, MTP): their families, and which parts stay in floats.

A head reads the target's hidden states and has no forward pass of its own, so it is quantized from
file to file. `families.yaml` describes the families. Left out: EAGLE-1 and -2, Medusa, and heads
inside a target's own checkpoint.
"""
