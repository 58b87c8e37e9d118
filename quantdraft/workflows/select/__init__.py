"""Choose among drafts: which draft, under which recipe, at which k, for one target's traffic."""
