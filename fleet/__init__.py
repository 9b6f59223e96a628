"""Many requests at once, on one machine or several: the APIs of the hosted services before the library, on a Ray cluster.

    apis/           what clients of Replicate, Black Forest Labs and Cog ask, on one port
    keys.py         who may ask; files.py, secret.py, webhooks.py: what clients send, may read, and are told
    fetching.py     addresses that requests name, fetched from outside alone
    records/        what was accepted and what became of it, in a database: SQLite, or PostgreSQL
    __main__.py     the engine and the APIs in one process
    engine.py       accepted jobs -> the cluster -> their records; one engine at a time
    lane.py         as many jobs at once as there is room for; queue.py: whose is next
    cluster.py      the Ray cluster that they go to
    drawing.py      a `Generator` per replica, as a deployment of Ray Serve
    training.py     a training as a Ray task, which another node takes over where its node is lost
    lease.py        who is at work in a folder that nodes share
    settings.py     what the operator chooses by the environment

The library knows nothing of it, and the Cog container does not carry it.
"""
