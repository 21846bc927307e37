"""One script for each runtime: it trains the models of the contract tests with that library, in its own process."""
