"""From a model and a table to a deployment's first settings, for `forecache init`.

`key_columns` guesses the columns of ids and of event times; `matching` matches columns to the model's inputs; `trial`
scores one row in a separate process; `proposal` spells the settings; `files` writes them, all or none.
"""
