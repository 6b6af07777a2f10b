"""The sparse multi-fidelity Gaussian process: kernel, inducing points, rows, statistics, hyperparameters, moments."""
