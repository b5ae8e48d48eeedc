"""Which known misconception would have given this answer? They are asked one by one, by running them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .calls import Answer, Call, LocalAnswer, Observation
from .compare import same_behaviour
from .exercise import Case, Exercise, Misconception


@dataclass(frozen=True)
class Trial:
    """One case, ready to be put to an answer, with what the reference gave.

    Args:
        case: as declared.
        call: the request.
        expected: the reference's observation.
    """

    case: Case
    call: Call
    expected: Observation


@dataclass(frozen=True)
class Cause:
    """A misconception (or two at once) that explains everything that was seen."""

    misconceptions: tuple[Misconception, ...]

    @property
    def id(self) -> str:
        return " + ".join(m.id for m in self.misconceptions)


def looked_at(trial: Trial, observation: Observation) -> Observation:
    """The observation as the case compares it: with ``look_at`` in place of the value, where there is one.

    A value that cannot be looked at (it is not even of the right kind) stays as it is.
    """
    if trial.case.look_at is None or observation.failure is not None:
        return observation
    try:
        return replace(observation, value=trial.case.look_at(observation.value, trial.call.inputs))
    except Exception:
        return observation


def candidates(exercise: Exercise) -> Iterator[tuple[Cause, Callable[..., Any]]]:
    """Every known wrong implementation: the single ones first, then pairs in different parts."""
    for misconception in exercise.misconceptions:
        for wrong in implementations(exercise, misconception):
            yield Cause((misconception,)), wrong
    in_parts = [m for m in exercise.misconceptions if m.part and exercise.assemble]
    for a, b in itertools.combinations(in_parts, 2):
        if not set(a.part) & set(b.part):
            yield Cause((a, b)), exercise.assemble(**a.part, **b.part)


def implementations(exercise: Exercise, misconception: Misconception) -> list[Callable[..., Any]]:
    """The runnable forms of one misconception."""
    found = [misconception.wrong] if misconception.wrong is not None else []
    if misconception.part is not None:
        found.append(exercise.assemble(**misconception.part))
    return [*found, *misconception.also]


def diagnose(
    exercise: Exercise,
    trials: list[Trial],
    seen: list[Observation],
    failing: int,
    more: Callable[[int], list[Trial]],
    answer: Answer,
    memory: dict | None = None,
) -> Cause | None:
    """The misconception that behaves as the answer did, on every case.

    Args:
        trials: all cases.
        seen: the answer's observations of them.
        failing: index of the first case that went wrong; candidates are tried on it first.
        more: gives further trials (for a number), to tell apart two that explain everything so far.
        answer: asked again only for those.
        memory: where what the candidates give is kept for the next answer with the same trials.
    """
    order = [failing, *(i for i in range(len(trials)) if i != failing)]
    names = exercise.returns

    def given_by(number: int, wrong: Callable[..., Any], trial: Trial) -> Observation:
        key = (exercise.name, number, trial.call.seed)
        if memory is None or key not in memory:
            given = looked_at(trial, LocalAnswer(wrong).observe(_asked(trial.call)))
            if memory is None:
                return given
            memory[key] = given
        return memory[key]

    def behaves_alike(
        candidate: tuple[int, Callable[..., Any]], trials: list[Trial], seen: list[Observation], order
    ) -> bool:
        for i in order:
            theirs = given_by(*candidate, trials[i])
            if trials[i].case.raises:
                if _refusal(trials[i].case, seen[i]) != _refusal(trials[i].case, theirs):
                    return False
            elif not same_behaviour(looked_at(trials[i], seen[i]), theirs, trials[i].case.tolerance, names):
                return False
        return True

    # What is done with inputs that should be refused may wait: a mistake that explains all the others is named first.
    ordinary = [i for i in order if not trials[i].case.raises]
    refusals = [i for i in order if trials[i].case.raises]
    left: list[tuple[Cause, tuple[int, Callable[..., Any]]]] = []
    but_for_refusals: list[tuple[Cause, tuple[int, Callable[..., Any]]]] = []
    for number, (cause, function) in enumerate(candidates(exercise)):
        wrong = (number, function)
        if len(cause.misconceptions) > 1 and left:
            break  # one mistake that explains all is likelier than two
        if failing in refusals and not behaves_alike(wrong, trials, seen, refusals):
            continue
        if not behaves_alike(wrong, trials, seen, ordinary):
            continue
        if failing in refusals or behaves_alike(wrong, trials, seen, refusals):
            left.append((cause, wrong))
        else:
            but_for_refusals.append((cause, wrong))
    if not left and but_for_refusals:
        fewest = len(but_for_refusals[0][0].misconceptions)
        left = [pair for pair in but_for_refusals if len(pair[0].misconceptions) == fewest]
    for round_ in (1, 2):
        if len({cause.id for cause, _ in left}) < 2:
            break
        further = more(round_)
        observed = [answer.observe(trial.call) for trial in further]
        compared = [i for i, trial in enumerate(further) if not trial.case.raises]
        left = [pair for pair in left if behaves_alike(pair[1], further, observed, compared)] or left
    return left[0][0] if left else None


def _refusal(case: Case, observation: Observation) -> str:
    """What an answer did with an input that should be refused: that counts, not how it put it."""
    if observation.failure is None:
        return "accepted"
    right = {kind.__name__ for kind in case.raises} & set(observation.failure.types)
    return "refused" if right else observation.failure.types[0]


def _asked(call: Call) -> Call:
    """The same call without the watching: known wrong answers may use whatever they like."""
    return replace(call, forbidden=(), reference_allowed=None, seconds=min(call.seconds, 5.0))
