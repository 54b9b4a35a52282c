"""Past one process: batches over millions of pictures and sweeps over settings, on Ray.

Only the files `ray_*.py` import Ray; everything that can be told without it is beside them, and tested without it.
"""
