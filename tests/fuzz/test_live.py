from pathlib import Path

import trio

from fuzz.live import fuzz_server


async def test_a_server_takes_nonsense_while_others_go_on_talking(tmp_path: Path) -> None:
    with trio.fail_after(90):
        seen = await fuzz_server(tmp_path, secs=2, seed=5, behind_proxy=False)
    assert seen.problems == []
    assert seen.echoes >= 2
    assert seen.upgraded >= 5
    assert seen.statuses.keys() - {101}
