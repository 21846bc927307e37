"""What the benchmarks compare with, each as its users write it."""
