"""Datasets, one reader for each file format, and partitions of their examples over clients."""

from fedsim.data.assignment import Partition
from fedsim.data.dataset import Dataset
from fedsim.data.form import Form
from fedsim.data.partitions import PARTITIONS, make_partition
from fedsim.data.registry import DATASETS, load_dataset
from fedsim.data.source import data_directory

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Dataset",
    "Form",
    "Partition",
    "data_directory",
    "load_dataset",
    "make_partition",
]
