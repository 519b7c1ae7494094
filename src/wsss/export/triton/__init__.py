"""Model repositories for Triton Inference Server, written from a bundle."""

from .check import check_repository
from .options import RepositoryOptions
from .repository import RepositoryResult, write_repository

__all__ = ["RepositoryOptions", "RepositoryResult", "check_repository", "write_repository"]
