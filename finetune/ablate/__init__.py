"""The thesis's ablations: DoGNeXt and its variants under one recipe on one data set."""
