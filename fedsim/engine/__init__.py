"""Runs Flower apps: many simulated clients on Ray, or in this process. Knows no experiment."""

from fedsim.engine.apps import AppSource
from fedsim.engine.cohort import Block
from fedsim.engine.executor import Executor, Job, Outcome
from fedsim.engine.federations import Federation, problem_of
from fedsim.engine.grid import SimulationGrid
from fedsim.engine.inline import InlineExecutor
from fedsim.engine.simulation import open_executor, run_server_app, run_simulation

__all__ = [
    "AppSource",
    "Block",
    "Executor",
    "Federation",
    "InlineExecutor",
    "Job",
    "Outcome",
    "SimulationGrid",
    "open_executor",
    "problem_of",
    "run_server_app",
    "run_simulation",
]
