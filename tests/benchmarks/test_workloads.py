import pytest
from workloads import GROUPS, GROWTHS, SERVERS, WORKLOADS, choose


def test_names_are_unique_and_none_is_that_of_a_group() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len({*names, *GROUPS}) == len(names) + len(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_a_quick_look_takes_something_of_each_group(group: str) -> None:
    chosen = choose(frozenset({group}), quick=True)
    assert chosen
    assert len(chosen) < len(choose(frozenset({group}), quick=False))
    assert {workload.group for workload in chosen} == {group}


def test_named_workloads_are_chosen_even_for_a_quick_run() -> None:
    assert [w.name for w in choose(frozenset({"rate-2000x1"}), quick=True)] == ["rate-2000x1"]
    assert choose(frozenset(), quick=False) == list(WORKLOADS)


def test_growth_is_measured_at_enough_sizes_also_in_a_quick_look() -> None:
    quick = {workload.name for workload in choose(frozenset(), quick=True)}
    for growth in GROWTHS:
        assert len(quick & growth.sizes.keys()) >= 3
        assert sorted(growth.sizes.values()) == list(growth.sizes.values())
    assert (min(GROWTHS[0].sizes.values()), max(GROWTHS[0].sizes.values())) == (1, 1000)
    assert (min(GROWTHS[1].sizes.values()), max(GROWTHS[1].sizes.values())) == (10, 4000)


def test_each_workload_has_a_complete_command_and_known_servers() -> None:
    for workload in WORKLOADS:
        assert workload.command[:5] == [
            workload.mode,
            "--devices",
            str(workload.devices),
            "--apps",
            str(workload.apps),
        ]
        assert set(workload.servers) <= set(SERVERS)
        assert not (workload.tls and "floor" in workload.servers)
