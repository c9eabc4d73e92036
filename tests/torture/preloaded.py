"""Imported by the process that sessions are forked from: what each would otherwise begin with."""

from basisconv.study.data.sets import load
from basisconv.study.records.environment import environment
from basisconv.study.training.models import build_network
from torture.subjects import RUNS

environment()
for run in RUNS:
    load(run.data.name, run.data.train_images)
    build_network(run.network, run.width, 10)  # which imports torchvision
