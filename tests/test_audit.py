"""Every known wrong answer is caught and called by its name, every correct style passes: for all lessons."""

import re

import pytest

from mha_course import exercises
from mha_course.checking.audit import audit, select

EVERY = [exercise for lesson in exercises.lessons() for exercise in lesson.exercises]
QUESTIONS = [question for lesson in exercises.lessons() for question in lesson.questions]


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.name)
def test_known_wrong_answers_are_caught_and_named_and_correct_styles_pass(exercise):
    result = audit(exercise)
    assert result.clean, "\n".join(result.problems)
    assert result.wrong, "an exercise without a known mistake checks nothing"


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.name)
def test_the_audit_does_not_hang_on_one_seed(exercise):
    result = audit(exercise, seed=20261123)
    assert result.clean, "\n".join(result.problems)


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.name)
def test_every_misconception_speaks_in_whole_sentences(exercise):
    ids = [misconception.id for misconception in exercise.misconceptions]
    assert len(ids) == len(set(ids))
    for misconception in exercise.misconceptions:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", misconception.id), misconception.id
        assert misconception.says.rstrip()[-1] in ".?!)", misconception.id
        assert 20 < len(misconception.says) < 500, misconception.id
        assert misconception.hint in (None, 1, 2, 3), misconception.id
        if misconception.part is not None:
            assert exercise.assemble is not None, misconception.id


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.name)
def test_the_cases_have_names_of_their_own(exercise):
    names = [case.name for case in exercise.cases]
    assert len(names) == len(set(names))
    assert exercise.cases


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_every_option_of_a_question_is_explained(question):
    assert question.right in question.why
    assert len(question.why) >= 3
    assert all(len(text) > 10 for text in question.why.values())


def test_exercises_are_selected_by_lesson_number_or_name():
    assert select(exercises.lessons(), []) == EVERY
    for lesson in exercises.lessons():
        assert select(exercises.lessons(), [lesson.folder]) == list(lesson.exercises)
        assert select(exercises.lessons(), [lesson.number]) == list(lesson.exercises)
    assert select(exercises.lessons(), ["no such thing"]) == []
