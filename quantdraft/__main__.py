"""`python -m quantdraft`, where the program itself is not installed."""

if __name__ == "__main__":
    from quantdraft.cli import main

    main(prog_name="quantdraft")
