"""Energy: the processor's counters, and the seconds and joules modelled on a device."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.measure import devices
from fedsim.measure.devices import (
    DeviceProfile,
    Modelled,
    Part,
    figures,
    load_profile,
    modelled,
    profile_directory,
    profile_names,
)
from fedsim.measure.energy import Counter, Energy, not_measured, package_energy

RANGE = 262_143_328_850  # microjoules, as on a computer of today
COUNTS = (
    *("train_flops", "bias_flops", "optimizer_flops"),
    *("compare_ops", "multiply_add_ops", "division_ops", "transcendental_ops"),
    *("uplink_bytes", "downlink_bytes"),
)
NOTHING = dict.fromkeys(COUNTS, 0)
# Powers of two, so that what follows from them is exact.
RATES = {
    "matrix_flops_per_second": 2.0**30,
    "compare_ops_per_second": 2.0**20,
    "multiply_add_ops_per_second": 2.0**19,
    "division_ops_per_second": 2.0**18,
    "transcendental_ops_per_second": 2.0**17,
    "uplink_bytes_per_second": 2.0**16,
    "downlink_bytes_per_second": 2.0**15,
}
PRICES = {
    "joules_per_matrix_flop": 2.0**-30,
    "joules_per_compare_op": 2.0**-29,
    "joules_per_multiply_add_op": 2.0**-28,
    "joules_per_division_op": 2.0**-27,
    "joules_per_transcendental_op": 2.0**-26,
    "joules_per_uplink_byte": 2.0**-25,
    "joules_per_downlink_byte": 2.0**-24,
}
TEXTS = {"name": "toy", "description": "a toy", "uncertainty": "none"}


def device() -> DeviceProfile:
    return DeviceProfile(**TEXTS, **RATES, **PRICES, sources={})


def visit(**counts: float) -> Modelled:
    return modelled(device(), **{**NOTHING, **counts})


def write_profile(path: Path, changes: Mapping[str, Any]) -> str:
    """Write a right profile with some keys changed; None leaves one out."""
    numbers = {**RATES, **PRICES}
    table: dict[str, Any] = {**TEXTS, **numbers, **{f"{k}_source": "a guess" for k in numbers}}
    table.update(changes)
    path.write_text(tomli_w.dumps({k: v for k, v in table.items() if v is not None}))
    return str(path)


def problems(name_or_path: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_profile(name_or_path)
    return caught.value.problems


# Device profiles.


def test_the_bundled_profiles() -> None:
    assert profile_names() == ("gpu-server", "laptop", "phone", "raspberry-pi")


@pytest.mark.parametrize("name", profile_names())
def test_a_bundled_profile_is_complete_and_cites_its_sources(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert "factor" in profile.uncertainty
    assert "do not compare activations by modelled figures" in profile.uncertainty
    assert profile.sources.keys() == {**RATES, **PRICES}.keys()
    cited = " ".join(profile.sources.values())
    assert cited.count("http") >= 3
    for text in (profile.description, profile.uncertainty, *profile.sources.values()):
        assert "  " not in text
        assert "\n" not in text


@pytest.mark.parametrize("name", profile_names())
def test_what_a_bundled_profile_spends_is_a_device_s_power(name: str) -> None:
    """Joules per piece times pieces per second are watts: none burns or runs on nothing."""
    profile = vars(load_profile(name))
    lowest, highest = {
        "phone": (0.3, 10),
        "raspberry-pi": (3, 12),
        "laptop": (0.3, 64),
        "gpu-server": (5, 1000),
    }[name]
    for rate, price in zip(RATES, PRICES, strict=True):
        assert lowest <= profile[rate] * profile[price] <= highest, rate


def test_the_order_of_devices_and_of_operations() -> None:
    by_name = {name: load_profile(name) for name in profile_names()}
    speeds = [by_name[n].matrix_flops_per_second for n in ("raspberry-pi", "phone", "laptop")]
    assert sorted(speeds) == speeds
    assert speeds[-1] < by_name["gpu-server"].matrix_flops_per_second
    for profile in by_name.values():
        rates = [vars(profile)[name] for name in list(RATES)[1:5]]
        assert sorted(rates, reverse=True) == rates
        prices = [vars(profile)[name] for name in list(PRICES)[1:5]]
        assert sorted(prices) == prices


def test_a_profile_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_profile(tmp_path / "mine.toml", {"matrix_flops_per_second": 7})
    profile = load_profile(path)
    assert profile.matrix_flops_per_second == 7.0
    assert type(profile.matrix_flops_per_second) is float
    assert profile.sources["joules_per_division_op"] == "a guess"
    monkeypatch.chdir(tmp_path)
    assert load_profile("mine.toml") == profile
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_profile("~/mine.toml") == profile


def test_energy_may_cost_nothing_but_nothing_is_infinitely_fast(tmp_path: Path) -> None:
    free = load_profile(write_profile(tmp_path / "free.toml", dict.fromkeys(PRICES, 0)))
    assert modelled(free, **dict.fromkeys(COUNTS, 5)).joules == 0.0
    found = problems(write_profile(tmp_path / "fast.toml", dict.fromkeys(RATES, 0)))
    assert [line.split(" = ")[0].split(": ")[-1] for line in found] == list(RATES)
    assert all(line.endswith("must be a number greater than 0") for line in found)


@pytest.mark.parametrize(
    "value", [-1, -1e-30, True, "fast", [1], float("nan"), float("inf"), 10**400]
)
@pytest.mark.parametrize("key", ["matrix_flops_per_second", "joules_per_uplink_byte"])
def test_what_is_no_figure_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    path = write_profile(tmp_path / "bad.toml", {key: value})
    (line,) = problems(path)
    assert line.startswith(f"{path}: {key} = ")
    assert "must be a number" in line


@pytest.mark.parametrize("key", [*RATES, *PRICES, *TEXTS, "joules_per_division_op_source"])
def test_nothing_missing_is_guessed(key: str, tmp_path: Path) -> None:
    path = write_profile(tmp_path / "short.toml", {key: None})
    (line,) = problems(path)
    assert line.startswith(f"{path}: {key}: missing; write ")


@pytest.mark.parametrize("value", ["", "  ", 7, False])
@pytest.mark.parametrize("key", ["name", "uncertainty", "uplink_bytes_per_second_source"])
def test_what_is_no_text_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    (line,) = problems(write_profile(tmp_path / "bad.toml", {key: value}))
    assert f"{key} = {value!r}: must be a text" in line


def test_every_problem_has_its_line(tmp_path: Path) -> None:
    path = write_profile(
        tmp_path / "bad.toml",
        {"joules_per_flop": 1.0, "name": None, "uplink_bytes_per_second": -2, "colour": "red"},
    )
    found = problems(path)
    assert len(found) == 4
    assert "joules_per_flop: unknown key; did you mean 'joules_per_" in found[0]
    assert "colour: unknown key" in found[1]
    assert "name: missing" in found[2]
    assert "uplink_bytes_per_second = -2: must be a number greater than 0" in found[3]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("fone", "did you mean 'phone'?"),
        ("raspberry", "did you mean 'raspberry-pi'?"),
        ("", "valid: gpu-server, laptop, phone, raspberry-pi"),
        ("zx", "valid: gpu-server, laptop, phone, raspberry-pi"),
    ],
)
def test_an_unknown_name(name: str, meant: str) -> None:
    (line,) = problems(name)
    assert line == f"{name!r}: no such device profile; {meant}, or the path of a .toml file"


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    assert problems(str(tmp_path / "none.toml")) == (f"{tmp_path}/none.toml: no such file",)
    assert problems(str(tmp_path / "none"))[0].endswith("none: no such file")
    (tmp_path / "bad.toml").write_text("name = ")
    assert "not valid TOML" in problems(str(tmp_path / "bad.toml"))[0]


def test_a_package_without_its_profiles_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fedsim"
    package.mkdir()
    monkeypatch.setattr(devices.fedsim, "__file__", str(package / "__init__.py"))
    assert "reinstall fedsim" in problems("phone")[0]
    (package / "devices").mkdir()
    (package / "devices" / "toaster.toml").touch()
    assert profile_directory() == package / "devices"
    assert profile_names() == ("toaster",)


# What a visit takes.


def test_by_hand() -> None:
    found = visit(
        train_flops=2**31,
        bias_flops=2**18,
        optimizer_flops=2**18,
        compare_ops=2**20,
        multiply_add_ops=2**18,
        division_ops=2**18,
        transcendental_ops=2**18,
        uplink_bytes=2**16,
        downlink_bytes=2**16,
    )
    assert found.compute == Part(seconds=2.0, joules=2.0)
    # Compared 1 s; (2**18 + 2**19 / 2) multiply-adds 1 s; divided 1 s; transcendental 2 s.
    expected = 2.0**-9 + 2.0**-9 + 2.0**-9 + 2.0**-8
    assert found.elementwise == Part(seconds=5.0, joules=expected)
    assert found.uplink == Part(seconds=1.0, joules=2.0**-9)
    assert found.downlink == Part(seconds=2.0, joules=2.0**-8)
    assert found.seconds == 10.0
    assert found.joules == 2.0 + expected + 2.0**-9 + 2.0**-8


@pytest.mark.parametrize(
    ("count", "part"),
    [
        ("train_flops", "compute"),
        *((name, "elementwise") for name in COUNTS[1:7]),
        ("uplink_bytes", "uplink"),
        ("downlink_bytes", "downlink"),
    ],
)
def test_a_count_goes_into_one_part(count: str, part: str) -> None:
    found = visit(**{count: 1000})
    for name in ("compute", "elementwise", "uplink", "downlink"):
        each = getattr(found, name)
        assert (each.seconds > 0, each.joules > 0) == (name == part, name == part)
    assert found.seconds == getattr(found, part).seconds
    assert found.joules == getattr(found, part).joules


def test_two_flops_of_biases_or_the_optimiser_are_one_multiply_add() -> None:
    assert visit(optimizer_flops=8) == visit(bias_flops=8) == visit(multiply_add_ops=4)


def test_no_work_takes_nothing() -> None:
    assert (visit().seconds, visit().joules) == (0.0, 0.0)


counts = st.fixed_dictionaries({name: st.integers(0, 2**50) for name in COUNTS})


@given(counts, counts)
def test_two_visits_take_the_sum(one: dict[str, int], other: dict[str, int]) -> None:
    both = visit(**{name: one[name] + other[name] for name in COUNTS})
    first, second = visit(**one), visit(**other)
    assert both.seconds == pytest.approx(first.seconds + second.seconds, rel=1e-12)
    assert both.joules == pytest.approx(first.joules + second.joules, rel=1e-12)


def test_every_figure_of_a_profile_is_used() -> None:
    """Halving any rate takes longer, doubling any price takes more."""
    work = dict.fromkeys(COUNTS, 1000)
    before = modelled(device(), **work)
    for name in figures():
        factor = 0.5 if name in RATES else 2.0
        table = {**TEXTS, **RATES, **PRICES, "sources": {}}
        changed = modelled(DeviceProfile(**{**table, name: factor * table[name]}), **work)
        assert (changed.seconds > before.seconds) == (name in RATES), name
        assert (changed.joules > before.joules) == (name in PRICES), name
    assert figures().keys() == {f.name for f in fields(DeviceProfile)} - TEXTS.keys() - {"sources"}


# The processor's counters.


def add_zone(root: Path, zone: str, name: str, microjoules: int, range: int = RANGE) -> Path:
    """Write what the kernel shows of one counter; return the file that counts."""
    directory = root / zone
    directory.mkdir(parents=True)
    (directory / "name").write_text(f"{name}\n")
    (directory / "energy_uj").write_text(f"{microjoules}\n")
    (directory / "max_energy_range_uj").write_text(f"{range}\n")
    return directory / "energy_uj"


def used(root: Path, changes: Mapping[Path, int]) -> Energy:
    """Measure a block in which counters get to these values."""
    with package_energy(root) as energy:
        assert energy.joules is None
        for counter, microjoules in changes.items():
            counter.write_text(f"{microjoules}\n")
    return energy


def test_microjoules_become_joules(tmp_path: Path) -> None:
    counter = add_zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    assert used(tmp_path, {counter: 17_500_000}) == Energy(joules=pytest.approx(12.5))


def test_every_package_counts_once(tmp_path: Path) -> None:
    """As on a computer with two sockets: the platform and the packages' parts are not added."""
    (tmp_path / "intel-rapl").mkdir()  # the control type
    zones = {
        "intel-rapl:0": ("package-0", 1),
        "intel-rapl:0:0": ("core", 1000),
        "intel-rapl:0:1": ("dram", 1000),
        "intel-rapl:1": ("package-1", 2),
        "intel-rapl:1:0": ("package-1-core", 1000),
        "intel-rapl:2": ("psys", 1000),
        "intel-rapl:3": ("package-0", 1000),  # shown twice
        "intel-rapl-mmio:0": ("package-0", 1000),
        "dtpm:0": ("package-5", 1000),
    }
    changes = {
        add_zone(tmp_path, zone, name, 7): 7 + 1_000_000 * joules
        for zone, (name, joules) in zones.items()
    }
    assert used(tmp_path, changes) == Energy(joules=pytest.approx(3.0))


@given(st.integers(0, RANGE - 1), st.integers(1, RANGE // 2))
def test_a_counter_that_begins_again(before: int, microjoules: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        readings = iter([before, (before + microjoules) % RANGE])
        patched.setattr(
            "fedsim.measure.energy.read_counters",
            lambda root: {
                "package-0": Counter(microjoules=next(readings), range_microjoules=RANGE)
            },
        )
        with package_energy() as energy:
            pass
    assert energy == Energy(joules=pytest.approx(microjoules * 1e-6, rel=1e-12))


def test_a_counter_that_begins_again_in_files(tmp_path: Path) -> None:
    counter = add_zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 2_000_000)
    assert used(tmp_path, {counter: 1_000_000}).joules == pytest.approx(3.0)


def test_a_counter_that_steps_back_has_not_begun_again(tmp_path: Path) -> None:
    """Otherwise a step of a microjoule would be 262 kJ."""
    counter = add_zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    energy = used(tmp_path, {counter: 8_999_999})
    assert energy.joules is None
    assert energy.reason == (
        f"package-0: its energy counter went back, from 9000000 to 8999999 of {RANGE} microjoules"
    )


@pytest.mark.parametrize("moves", [(), (0,), (1,)])
def test_a_counter_that_stands_still_gives_no_figure(
    moves: tuple[int, ...], tmp_path: Path
) -> None:
    """Also where another package's moves: the sum would leave one out."""
    counters = [add_zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 50) for i in range(2)]
    energy = used(tmp_path, {counters[i]: 90 for i in moves})
    assert energy.joules is None
    assert energy.reason is not None
    assert "stood still" in energy.reason


def test_a_machine_without_counters(tmp_path: Path) -> None:
    energy = used(tmp_path / "powercap", {})
    assert energy.joules is None
    assert energy.reason == (
        f"{tmp_path}/powercap: there is none; the kernel shows no energy counters here, as in "
        "most virtual machines and containers"
    )


def test_a_machine_without_a_processor_s_counter(tmp_path: Path) -> None:
    counter = add_zone(tmp_path, "intel-rapl:0", "psys", 5)
    energy = used(tmp_path, {counter: 5_000_000})
    assert energy.joules is None
    assert energy.reason == (
        f"{tmp_path}: the kernel shows no energy counter of a processor package here"
    )


def test_a_container_that_hides_what_is_behind_the_links(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "hidden")
    energy = used(tmp_path, {})
    assert energy.joules is None
    assert energy.reason is not None
    assert energy.reason.startswith(f"{tmp_path}/intel-rapl:0/name: there is none")


def test_counters_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = add_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    counter.chmod(0)
    if os.geteuid() == 0:  # to whom everything is open

        def read(path: Path, *rest: Any, **named: Any) -> str:
            if path == counter:
                raise PermissionError(13, "Permission denied", str(path))
            with path.open() as file:
                return file.read()

        monkeypatch.setattr(Path, "read_text", read)
    with package_energy(tmp_path) as energy:
        pass
    assert energy.joules is None
    assert energy.reason is not None
    assert energy.reason.startswith(f"{counter}: only root may read it")
    assert energy.reason.endswith(f"sudo chmod a+r {tmp_path}/intel-rapl:*/energy_uj")


def test_a_counter_that_is_no_number(tmp_path: Path) -> None:
    add_zone(tmp_path, "intel-rapl:0", "package-0", 5).write_text("soon\n")
    energy = used(tmp_path, {})
    assert energy.joules is None
    assert energy.reason is not None
    assert "cannot be read" in energy.reason


def test_a_package_that_goes_away(tmp_path: Path) -> None:
    add_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    counter = add_zone(tmp_path, "intel-rapl:1", "package-1", 5)
    with package_energy(tmp_path) as energy:
        (counter.parent / "name").write_text("gone\n")
    assert energy == Energy(reason="a processor package came or went during the measurement")


@pytest.mark.parametrize("measured", [True, False])
def test_a_block_that_raises_is_measured_and_still_raises(measured: bool, tmp_path: Path) -> None:
    counter = add_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with (
        pytest.raises(TypeError),
        package_energy(tmp_path / ("" if measured else "none")) as energy,
    ):
        counter.write_text("2000000\n") + "joules"  # type: ignore[operator]
    assert energy.joules == (pytest.approx(2.0) if measured else None)
    assert (energy.reason is None) == measured


def test_this_machine_has_a_figure_or_a_reason() -> None:
    with package_energy() as energy:
        sum(range(500_000))
    assert (energy.joules is None) == (energy.reason is not None)
    assert energy.joules is None or energy.joules > 0


def test_energy_that_nobody_asked_for_has_no_reason() -> None:
    with not_measured() as energy:
        pass
    assert energy == Energy(joules=None, reason=None)


def test_the_bundled_files_are_read_as_they_stand() -> None:
    for name in profile_names():
        table = tomllib.loads((profile_directory() / f"{name}.toml").read_text(encoding="utf-8"))
        profile = load_profile(name)
        assert all(getattr(profile, key) == table[key] for key in figures())
