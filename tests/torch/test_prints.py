"""What a user of `tdecomp_torch` holds prints as one line, without numbers of it."""

from __future__ import annotations

import pytest

from tests.torch.cases import adapted


@pytest.fixture
def adapter():
    return adapted("lotr", rank=3)[1]


def test_an_adapter_says_what_is_where(adapter):
    said = "Adapter('default': lotr, 8 weights in 2 groups, rank r=3 s=3; "
    assert repr(adapter) == f"{said}{adapter.n_trainable:,} trainable)"


def test_an_adapter_says_its_state(adapter):
    adapter.active = False
    assert repr(adapter).endswith("trainable; off)")
    adapter.active = True
    adapter.merge()
    assert repr(adapter).endswith("trainable; merged)")
    adapter.unmerge()
    adapter.detach()
    assert repr(adapter).endswith("trainable; detached)")


def test_tasks_and_ranks_that_differ():
    adapter = adapted("lora", rank=2, tasks=["a", "b"])[1]
    assert "8 weights in" in repr(adapter)
    assert "rank r=2, 2 tasks;" in repr(adapter)


def test_all_that_an_adapter_holds_prints_as_one_short_line(adapter):
    adapter.merge()
    held = [
        adapter,
        adapter.spec,
        adapter.settings,
        adapter.attached,
        adapter.attached.originals,
        adapter.pool,
        *adapter.pool.members,
        *adapter.groups,
        *adapter.targets,
        *(target.hook for target in adapter.targets),
        *adapter.to_lora(),
    ]
    for one in held:
        assert "\n" not in repr(one), type(one)
        assert len(repr(one)) < 200, type(one)


def test_a_notebook_shows_a_panel_for_every_group(adapter):
    html = adapter._repr_html_()
    assert all(f"lotr on {group.grid.name}<" in html for group in adapter.groups)
    assert "core" in html


def test_settings_tell_what_was_given(adapter):
    assert repr(adapter.settings) == "Settings(rank=3, tokens=64)"
