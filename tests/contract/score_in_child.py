"""Run as a script: load the model in FOLDER/model, score FOLDER/batch.pt, write FOLDER/scores.pt.

usage: score_in_child.py FOLDER ENTRY, where ENTRY is a row of the registry as JSON (a detector of the tests has none).
"""

import json
import sys
from pathlib import Path

import torch

from models import artifact, registry

folder, row = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.set_num_threads(1)
registry.DETECTORS.setdefault(row["kind"], registry.Entry(**row))
scores = artifact.load(folder / "model").detector.score(torch.load(folder / "batch.pt", weights_only=True))
torch.save((scores.image, scores.heatmap), folder / "scores.pt")
