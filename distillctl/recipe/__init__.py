"""Every knob. One YAML file, closed (an unknown key is an error) and frozen; no heavy imports.

A spec that can be chosen by ``kind`` names its implementation in ``target``; `implementation` resolves it when used.
"""

from distillctl.recipe.base import Closed, Spec, implementation
from distillctl.recipe.collecting import Collect
from distillctl.recipe.contexts import Context, Contexts, Message, Shot, Shots
from distillctl.recipe.data import Data
from distillctl.recipe.graphs import (
    CANDIDATES,
    Bench,
    DynamicInt8,
    Export,
    Float16,
    Gate,
    Quantize,
    Report,
    StaticInt8,
    WeightOnly,
)
from distillctl.recipe.loading import dump, flatten, load, schema
from distillctl.recipe.models import (
    FromConfigStudent,
    HuggingFaceTeacher,
    NewTokenizer,
    PretrainedStudent,
    Student,
    Teacher,
    TruncatedStudent,
    Vocabulary,
)
from distillctl.recipe.root import Recipe
from distillctl.recipe.served import OpenAITeacher, Prices
from distillctl.recipe.task import (
    Classify,
    Dense,
    Generate,
    Given,
    Greedy,
    Metric,
    Sampled,
    Sampling,
    SoftLabels,
    Task,
    Text,
    TopK,
)
from distillctl.recipe.training import (
    JSD,
    TVD,
    ULD,
    CrossEntropy,
    ForwardKL,
    Loss,
    LossTerm,
    ReverseKL,
    SkewKL,
    Train,
)

__all__ = [
    "CANDIDATES", "JSD", "TVD", "ULD", "Bench", "Classify", "Closed", "Collect", "Context", "Contexts", "CrossEntropy",
    "Data", "Dense", "DynamicInt8", "Export", "Float16", "ForwardKL", "FromConfigStudent", "Gate", "Generate", "Given",
    "Greedy", "HuggingFaceTeacher", "Loss", "LossTerm", "Message", "Metric", "NewTokenizer", "OpenAITeacher",
    "PretrainedStudent", "Prices", "Quantize", "Recipe", "Report", "ReverseKL", "Sampled", "Sampling", "Shot", "Shots",
    "SkewKL", "SoftLabels", "Spec", "StaticInt8", "Student", "Task", "Teacher", "Text", "TopK", "Train",
    "TruncatedStudent", "Vocabulary", "WeightOnly", "dump", "flatten", "implementation", "load", "schema",
]  # fmt: skip
