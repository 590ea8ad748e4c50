"""Every knob. One YAML file, closed (an unknown key is an error) and frozen; no heavy imports.

A spec that can be chosen by ``kind`` names its implementation in ``target``; `implementation` resolves it when used.
"""

from distillctl.recipe.base import Section, Spec, implementation
from distillctl.recipe.bench import Bench
from distillctl.recipe.classify import Classify
from distillctl.recipe.collect import Collect
from distillctl.recipe.contexts import ChatMessage, Context, Contexts, Shot, Shots
from distillctl.recipe.data import Data
from distillctl.recipe.export import Export
from distillctl.recipe.generate import (
    Dense,
    EvalSoftLabels,
    FieldReference,
    Generate,
    Given,
    Greedy,
    Metric,
    Sampled,
    Sampling,
    SoftLabels,
    Text,
    TopK,
)
from distillctl.recipe.loading import dump, flatten, load, schema
from distillctl.recipe.models import (
    FromConfigStudent,
    HuggingFaceTeacher,
    NewTokenizer,
    PretrainedStudent,
    Student,
    Teacher,
    TrimmedVocabulary,
    TruncatedStudent,
)
from distillctl.recipe.quantize import CANDIDATES, DynamicInt8, Float16, Gate, Quantize, StaticInt8, WeightOnly
from distillctl.recipe.report import Languages, Report
from distillctl.recipe.root import Recipe
from distillctl.recipe.served import OpenAITeacher, Prices
from distillctl.recipe.task import Task
from distillctl.recipe.task_section import TaskSection
from distillctl.recipe.train import (
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
    "CANDIDATES",
    "JSD",
    "TVD",
    "ULD",
    "Bench",
    "ChatMessage",
    "Classify",
    "Collect",
    "Context",
    "Contexts",
    "CrossEntropy",
    "Data",
    "Dense",
    "DynamicInt8",
    "EvalSoftLabels",
    "Export",
    "FieldReference",
    "Float16",
    "ForwardKL",
    "FromConfigStudent",
    "Gate",
    "Generate",
    "Given",
    "Greedy",
    "HuggingFaceTeacher",
    "Languages",
    "Loss",
    "LossTerm",
    "Metric",
    "NewTokenizer",
    "OpenAITeacher",
    "PretrainedStudent",
    "Prices",
    "Quantize",
    "Recipe",
    "Report",
    "ReverseKL",
    "Sampled",
    "Sampling",
    "Section",
    "Shot",
    "Shots",
    "SkewKL",
    "SoftLabels",
    "Spec",
    "StaticInt8",
    "Student",
    "Task",
    "TaskSection",
    "Teacher",
    "Text",
    "TopK",
    "Train",
    "TrimmedVocabulary",
    "TruncatedStudent",
    "WeightOnly",
    "dump",
    "flatten",
    "implementation",
    "load",
    "schema",
]  # fmt: skip
