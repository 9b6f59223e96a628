"""What train.py and predict.py share: Cog's side of the server, of which the library knows nothing.

In: requests as Cog hands them over. Out: requests of the library, or a sentence that refuses them. Begin with interface.py.
"""
