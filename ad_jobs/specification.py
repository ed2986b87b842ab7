"""What every specification of a verb is, and how a function becomes a verb that takes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, Protocol, Self, TypeVar, overload

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from ad_jobs.errors import refused

Options = ParamSpec("Options")
SpecT = TypeVar("SpecT")
SpecIn = TypeVar("SpecIn", contravariant=True)
Result = TypeVar("Result", covariant=True)


class Spec(BaseModel):
    """What one verb is asked to do.

    Raises:
        UsageError: a value that breaks a rule: the option, the value, and the remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, options: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(options)
        except ValidationError as error:
            names = {field.alias or name for name, field in cls.model_fields.items()}
            raise refused(error, names) from error

    def config(self) -> dict[str, Any]:
        """The options that are set, as plain values by their names: a `--config` for the same request.

        >>> from ad_jobs.specs import IndexSpec
        >>> IndexSpec(source="s3://archive/2024", out="/m").config()
        {'source': 's3://archive/2024', 'out': '/m', 'headers': False, 'demographics': False, 'identifiers': 'plain'}
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Verb(Protocol[Options, SpecIn, Result]):
    """A verb: takes its specification, or the specification's fields by name (or in their order)."""

    @overload
    def __call__(self, spec: SpecIn, /) -> Result: ...
    @overload
    def __call__(self, *args: Options.args, **kwargs: Options.kwargs) -> Result: ...


def takes(spec: Callable[Options, SpecT]) -> Callable[[Callable[[SpecT], Result]], Verb[Options, SpecT, Result]]:
    """A decorator that makes a function of a specification a verb.

    >>> from ad_jobs.run_specs import ReportSpec
    >>> @takes(ReportSpec)
    ... def pictures(spec: ReportSpec) -> int:
    ...     return spec.top
    >>> pictures(run="run", top=3), pictures(ReportSpec(run="run"))
    (3, 24)
    """
    assert isinstance(spec, type)
    assert issubclass(spec, Spec)
    kind: type[Spec] = spec

    def decorate(function: Callable[[SpecT], Result]) -> Verb[Options, SpecT, Result]:
        @wraps(function)
        def verb(*args: Any, **options: Any) -> Result:
            if len(args) == 1 and not options and isinstance(args[0], kind):
                asked: Any = args[0]
            elif len(args) > len(kind.model_fields):
                raise TypeError(
                    f"{function.__name__} takes at most {len(kind.model_fields)} arguments, not {len(args)}"
                )
            else:
                asked = kind(**dict(zip(kind.model_fields, args, strict=False)), **options)
            return function(asked)

        verb.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
        return verb

    return decorate
