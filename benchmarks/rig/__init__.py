"""What every benchmark stands on: generated data, real processes, a load generator, one form of report."""
