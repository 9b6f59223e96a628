"""What a training step and a prediction cost on one card, on random weights of the real configurations.

In: the configurations of the bases, a number of seconds. Out: `benchmarks/gpu.json` and a section of RESULTS.md. It reads no
weights and needs no network. Begin with cases.py.
"""
