"""Tracks through a video, and what they count: lines, zones, time series. Reads `Detections` and nothing else."""
