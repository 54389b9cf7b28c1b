import msgspec

from brewos_relay.instances import (
    Description,
    Rates,
    Survey,
    SurveyedInstance,
    find_problems,
    read_description,
)

ONE = Description(version="1.2", host="a", boot="a", keys="k", registry="r")


def kinds(**descriptions: Description) -> list[str]:
    return [problem.kind for problem in find_problems(descriptions)]


def other(**changes: object) -> Description:
    content = {"version": "1.2", "host": "b", "boot": "b", "keys": "k", "registry": "r"}
    return read_description(msgspec.json.encode({**content, **changes}))


def test_instances_that_fit_together_have_no_problem() -> None:
    assert kinds() == kinds(one=ONE) == kinds(one=ONE, two=other()) == []


def test_each_difference_is_one_problem() -> None:
    assert kinds(one=ONE, two=other(version="1.3")) == ["versions"]
    assert kinds(one=ONE, two=other(keys="other"), three=other(keys="third")) == ["keys"]
    assert kinds(one=ONE, two=other(registry="other")) == ["registries"]
    assert kinds(one=ONE, two=other(sqlite=True)) == ["hosts"]
    assert kinds(one=ONE, two=other(sqlite=True, boot="a")) == []


def test_what_an_older_version_does_not_tell_is_not_compared() -> None:
    assert kinds(one=ONE, two=other(registry="", keys="")) == []


def test_a_problem_names_the_instances_and_what_to_do() -> None:
    many = {f"i{number}": other(registry="other") for number in range(10, 20)}
    [problem] = find_problems({"one": ONE, **many})
    assert "(i10, i11, i12, i13, i14 and 5 more / one)" in problem.text
    assert "BREWOS_RELAY_DATABASE_URL" in problem.advice
    [problem] = find_problems({"one": ONE, "two": other(version="1.3")})
    assert "1.2 on one / 1.3 on two" in problem.text


def test_descriptions_of_other_programs_are_harmless() -> None:
    for content in (b"not JSON", b"[]", b"{}", b'{"devices":"many"}', b'{"host":"\xff"}', b"[" * 100_000):
        assert read_description(content) == Description()
    content = b'{"rates":{"toClients":2},"more":1}'
    assert read_description(content) == Description(rates=Rates(to_clients=2))
    assert read_description(b'{"host":"a\\u001b[31m\\nb"}').host == "a [31m b"


def test_a_survey_finds_silent_and_draining_instances() -> None:
    survey = Survey(
        0.1,
        [
            SurveyedInstance("one", ONE, 0.5),
            SurveyedInstance("two", other(closing=True), 0.5),
            SurveyedInstance("three", other(closing=True), None),
        ],
    )
    assert [each.state for each in survey.instances] == ["running", "draining", "silent"]
    [problem] = survey.problems()
    assert (problem.kind, problem.text) == ("silent", "no answer from three")
    assert [each.kind for each in survey.problems({"here": other(keys="other")})] == ["keys", "silent"]
