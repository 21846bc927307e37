"""What batch, real time and hybrid cost, and which of them fits a model.

`inputs` lists the figures, `prices` the shipped prices, `measured` what a deployment measures; `estimate` and `curves`
compute costs; `rules` and `advice` advise. Nothing is imported here, so
that the options of the commands need no heavy library.
"""
