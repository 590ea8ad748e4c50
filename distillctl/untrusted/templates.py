"""Render untrusted templates in Jinja's sandbox, with a bound on their output.

Jinja keeps a template away from Python's insides and from files, but lets it write `"a" * 10 ** 10`. Here everything
that can make much from little is charged to the budget of one rendering before it is made: operators, `~`, slices,
filters, methods of texts, the output of macros and blocks, and the output. The caller bounds the time
(`distillctl.untrusted.limits.TimeBudget`).
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

BUDGET = 1 << 24
"""Budget of one rendering in characters. An item of a list counts as `_ITEM` characters."""
_ITEM = 16
_WIDTH = 10_000
"""Largest padding, indentation or other count that a template may give."""
_BITS = 4096
"""Largest size of integers in bits."""
_TO_PIECES = 1 << 20
"""Longest text that may be split, in characters."""
_DEPTH = 20
"""Deepest nesting of lists."""
_TIMES_GIVEN = 8
"""The budget also grows with the variables: they may be written, joined and cut this many times."""


class OutputBudgetExceeded(SecurityError):
    """The template produces more output than its budget."""


class _Buffer(list[str]):
    """The output of a macro or a block, charged to the budget."""

    def __init__(self, environment: Sandbox) -> None:
        self._charge = environment.charge

    def append(self, text: str) -> None:
        self._charge(_ITEM + len(text))
        super().append(text)

    def extend(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.append(text)


class _Code(CodeGenerator):
    """Jinja's code generator, but with calls of the environment instead of Python's lists, joins and slices."""

    def buffer(self, frame: Frame) -> None:
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.collected()")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._charged(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._charged(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx != "load":  # names to unpack into
            return super().visit_Tuple(node, frame)
        self._charged(super().visit_Tuple, node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            return super().visit_Getitem(node, frame)
        self._charged(super().visit_Getitem, node, frame)

    def _charged(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.charged(")
        visit(node, frame)
        self.write(")")


class _Namespace(Namespace):
    """Jinja's namespace, without private names: `__html__` would be called outside the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        Namespace.__init__(self)
        for name, value in dict(*given, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: object) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no {name!r}")
        super().__setitem__(name, value)


class _Dict:
    """`dict` without its methods, which could change the template's variables."""

    def __call__(self, *args: object, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class RowColumns(dict[str, Any]):
    """A row's columns. `row.items` is the column of that name if it exists, and not the method."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox. `render` raises `OutputBudgetExceeded`, a SecurityError, if a template exceeds its budget.

    null: the text for an expression that is None. By default it is "None".
    """

    code_generator_class = _Code
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, null: str | None = None, **options: Any) -> None:
        super().__init__(finalize=self._shown, **options)
        self._null = null
        self._budget = threading.local()
        self.filters = {name: self._guarded(name, filter) for name, filter in self.filters.items() if name != "urlize"}
        self.globals.pop("lipsum")
        self.globals |= {"dict": _Dict(), "namespace": _Namespace}

    def replace_filter(self, name: str, filter: Callable[..., Any]) -> None:
        """Replace a filter of Jinja's. The new one is charged to the budget too."""
        self.filters[name] = self._guarded(name, filter)

    def compiled(self, source: str) -> jinja2.Template:
        """Compile a template with a budget, because compiling evaluates constants."""
        self._budget.left = BUDGET
        return self.from_string(source)

    def variables(self, source: str) -> tuple[nodes.Template, set[str]]:
        """Return a template's syntax tree and the variables that it uses, without rendering it."""
        self._budget.left = BUDGET
        tree = self.parse(source)
        return tree, meta.find_undeclared_variables(tree)

    def render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Render a template with a budget of its own."""
        self._budget.left = BUDGET + _TIMES_GIVEN * self._printed(dict(variables))
        text = template.render(variables)
        text.encode()  # raises UnicodeEncodeError for half a surrogate pair
        return text

    # ── the budget ──

    def charge(self, amount: int) -> None:
        """Subtract so many characters from the budget."""
        self._budget.left -= amount
        if self._budget.left < 0:
            raise OutputBudgetExceeded(f"it makes more than {BUDGET:,} characters")

    def charged(self, value: object) -> Any:
        """Return ``value`` after charging it to the budget."""
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, (list, tuple, dict, set)):
            self.charge(_ITEM * len(value))
            self._printed(value)  # what doubles itself in a list takes Python no memory, but time without end
        return value

    def _printed(self, value: object, depth: int = 0) -> int:
        """Return a lower bound of a value's characters as text. Raise `OutputBudgetExceeded` beyond any budget."""
        if isinstance(value, str):
            return len(value) + (_ITEM if depth else 0)
        if isinstance(value, Namespace):
            value = object.__getattribute__(value, "_Namespace__attrs")
        if not isinstance(value, (list, tuple, dict, set)):
            return _ITEM
        if depth > _DEPTH:
            raise OutputBudgetExceeded(f"lists in lists, more than {_DEPTH} deep")
        inner = [part for entry in value.items() for part in entry] if isinstance(value, dict) else value
        total = _ITEM
        for part in inner:
            total += self._printed(part, depth + 1)
            if total > BUDGET:
                raise OutputBudgetExceeded(f"a list of more than {BUDGET:,} characters")
        return total

    def _shown(self, value: object) -> Any:
        """Check the value of an expression before it becomes text."""
        if value is None and self._null is not None:
            return self._null
        if not isinstance(value, str):
            self._printed(value)
        return value

    def getattr(self, obj: object, attribute: str) -> Any:
        """Look a name up in a row's columns before the attributes."""
        if isinstance(obj, RowColumns) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    # ── called by compiled templates ──

    def concat(self, texts: Iterable[str]) -> str:
        """Join the output of a template, a macro or a block."""
        if isinstance(texts, _Buffer):  # already charged
            return "".join(texts)
        charged = []
        for text in texts:
            self.charge(len(text))
            charged.append(text)
        return "".join(charged)

    def collected(self) -> _Buffer:
        """Return an empty buffer for what a template writes."""
        return _Buffer(self)

    def joined(self, parts: Iterable[Any]) -> str:
        """Evaluate `~`."""
        return self._join("", parts)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> Any:
        """Evaluate an operator once its result is sure to be small."""
        if operator == "%" and isinstance(left, str):
            self._check_percent(left, right)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _BITS:
                raise OutputBudgetExceeded("a number that is too large")
        elif operator == "*":
            count, repeated = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(count, int) and isinstance(repeated, (str, list, tuple)):
                self.charge(max(0, count) * self._printed(repeated))
        result = super().call_binop(context, operator, left, right)
        return self.charged(result) if operator == "+" else result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method once its result is sure to be small."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            __self._check_method(owner, __obj.__name__, args, kwargs)
        elif isinstance(owner, (int, float, complex, bytes)):
            raise SecurityError(f"{type(owner).__name__}.{__obj.__name__} is not for templates")
        return __self.charged(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a `str.format` whose result is sure to be small."""
        format = super().wrap_str_format(value)
        if format is None:
            return None
        text: str = value.__self__

        def checked(*args: object, **kwargs: Any) -> str:
            given = [*args, *kwargs.values()]
            if re.search(r"\d{5}", text) or ("{" in text and any(_is_wide(value) for value in given)):
                raise OutputBudgetExceeded("a width that is too large")
            self.charge(len(text) + text.count("{") * max(map(self._printed, given), default=0))
            return format(*args, **kwargs)

        return checked

    # ── methods and filters ──

    def _check_method(self, text: str, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        given = [*args, *kwargs.values()]
        if name in ("translate", "encode", "maketrans"):
            raise SecurityError(f"str.{name} is not for templates")
        if name == "replace" and len(args) >= 2:
            self._charge_replaced(text, *args[:2])
        elif name == "join" and args:
            self._charge_joined(text, args[0] if isinstance(args[0], (list, tuple)) else ())
            if not isinstance(args[0], (list, tuple, str)):
                raise SecurityError("str.join takes a list here")
            if isinstance(args[0], str):
                self.charge(len(args[0]) * (len(text) + 1))
        elif name == "expandtabs":
            self.charge(len(text) + text.count("\t") * max([8, *(value for value in given if isinstance(value, int))]))
        elif any(map(_is_wide, given)):
            raise OutputBudgetExceeded("a width that is too large")
        if "split" in name and len(text) > _TO_PIECES:
            raise OutputBudgetExceeded(f"a text of more than {_TO_PIECES:,} characters is taken apart")

    def _guarded(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter so that its result is charged to the budget."""
        if name == "join":
            return self._filter_join
        first = int(hasattr(filter, "jinja_pass_arg"))  # the environment or the context goes before the value

        @functools.wraps(filter)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            value, given = args[first], [*args[first + 1 :], *kwargs.values()]
            if name not in _OF_ANY_COUNT and any(map(_is_wide, given)):
                raise OutputBudgetExceeded(f"a count that is too large for {name}")
            if isinstance(value, str):
                if name not in _OF_WHOLE_TEXTS and len(value) > _TO_PIECES:
                    raise OutputBudgetExceeded(
                        f"a text of more than {_TO_PIECES:,} characters is taken apart by {name}"
                    )
                if name == "replace" and len(given) >= 2:
                    self._charge_replaced(value, str(given[0]), str(given[1]))
                elif name == "format":
                    self._check_percent(value, kwargs or tuple(given))
                elif name in ("indent", "wordwrap", "batch", "slice"):
                    self.charge(len(value) + self._lines(name, value) * max(map(_width, given), default=4))
            elif name == "tojson":
                lines = self._printed(value) // _ITEM + 1  # at most
                self.charge(lines * _DEPTH * sum(map(_width, given)))
            elif name == "sum":
                value = list(value)
                self.charge(_ITEM * sum(len(item) for item in value if isinstance(item, (list, tuple, str))))
                args = (*args[:first], value, *args[first + 1 :])
            elif name not in _OF_LISTS:
                self._printed(value)
            return self.charged(filter(*args, **kwargs))

        return guarded

    @staticmethod
    def _lines(name: str, text: str) -> int:
        return len(text) if name == "wordwrap" else text.count("\n") + 1

    def _filter_join(self, value: Iterable[object], d: str = "", attribute: str | int | None = None) -> str:
        """Evaluate `join`, with its items charged before they are joined."""
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        return self._join(str(d), value)

    def _join(self, separator: str, parts: Iterable[object]) -> str:
        texts = []
        for part in parts:
            self.charge(self._printed(part) + len(separator))
            texts.append(str(part))
        return separator.join(texts)

    def _charge_joined(self, separator: str, parts: Iterable[object]) -> None:
        for part in parts:
            self.charge(self._printed(part) + len(separator))

    def _charge_replaced(self, text: str, old: object, new: object) -> None:
        if isinstance(old, str) and isinstance(new, str):
            self.charge(len(text) + text.count(old) * len(new))

    def _check_percent(self, text: str, given: object) -> None:
        """Check `%`: its widths, and how often its arguments can occur in the text."""
        inner = given if isinstance(given, tuple) else tuple(given.values()) if isinstance(given, dict) else (given,)
        if re.search(r"%[^a-zA-Z%]*\d{5}", text) or ("*" in text and any(map(_is_wide, inner))):
            raise OutputBudgetExceeded("a width that is too large")
        self.charge(len(text) + text.count("%") * max(map(self._printed, inner), default=0))


_OF_ANY_COUNT = frozenset(["default", "d", "map", "select", "reject", "selectattr", "rejectattr", "sum", "abs", "int"])
"""Filters whose arguments are not counts."""
_OF_WHOLE_TEXTS = frozenset(
    ["length", "count", "first", "last", "default", "d", "safe", "string", "trim", "upper", "lower", "replace", "e",
     "escape", "forceescape", "tojson", "indent", "truncate", "format", "reverse", "capitalize"]
)  # fmt: skip
"""Filters that do not split a text into a list."""
_OF_LISTS = frozenset(
    ["length", "count", "first", "last", "default", "d", "list", "map", "select", "reject", "selectattr", "rejectattr",
     "sort", "unique", "min", "max", "random", "reverse", "items", "dictsort", "groupby", "batch", "slice", "attr",
     "abs", "int", "float", "round"]
)  # fmt: skip
"""Filters that do not turn a list into text."""


def _is_wide(value: object) -> bool:
    return isinstance(value, int) and not -_WIDTH <= value <= _WIDTH


def _width(value: object) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(_width, value))
    return len(value) if isinstance(value, str) else abs(value) if isinstance(value, int) else 0
