"""Fine-tuned FLUX on many machines, behind the APIs that clients have already.

In: requests of Replicate's, Black Forest Labs' and Cog's clients. Out: finetunes and pictures, made by the library `finetuner`.
Begin with jobs.py, which says what the APIs ask of the machines, then apis/.
"""
