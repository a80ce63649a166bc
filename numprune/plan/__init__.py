"""What a person decided and what came of it, as data: module keys, recipe, presets, plan, report. No torch here."""
