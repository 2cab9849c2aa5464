"""Times and places → moments, sessions, places."""

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from vizsla.data.occasions import MOMENT, places, same_moment, sessions

START = datetime(2024, 5, 1, 10)


def at(*seconds: float | None) -> list[datetime | None]:
    return [None if s is None else START + timedelta(seconds=s) for s in seconds]


def test_shots_of_one_camera_seconds_apart_in_two_parts_are_pairs() -> None:
    times = at(0, 4, 4, 60, None, 2)
    cameras = ["A", "A", "B", "A", "A", None]
    parts = ["training", "query", "query", "query", "query", "query"]
    assert same_moment(times, cameras, parts) == [(0, 1, 4.0)]
    assert same_moment(times, cameras, ["query"] * 6) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from("AB"), st.sampled_from("tqg")), max_size=12
    )
)
def test_the_nearest_of_each_other_part_is_found(shots: list[tuple[int, str, str]]) -> None:
    times, cameras, parts = at(*(s[0] for s in shots)), [s[1] for s in shots], [s[2] for s in shots]
    found = same_moment(times, cameras, parts)
    for i, (second, camera, part) in enumerate(shots):
        for other in {*parts} - {part}:
            gaps = [abs(second - s) for s, c, p in shots if c == camera and p == other]
            near = min(gaps, default=99)
            paired = [seconds for a, b, seconds in found
                      if i in (a, b) and parts[a + b - i] == other]  # fmt: skip
            assert (near in paired) == (near <= MOMENT.seconds)
    assert all(cameras[a] == cameras[b] and parts[a] != parts[b] for a, b, _ in found)


def test_a_session_ends_where_nothing_was_taken_for_half_an_hour() -> None:
    assert sessions(at(0, 4000, 1000, None, 2500, 9000)).tolist() == [0, 0, 0, -1, 0, 1]
    assert sessions(at(0, 4000)).tolist() == [0, 1]


def test_images_within_a_hundred_metres_of_another_are_of_one_place() -> None:
    metre = 1 / 111_195  # degrees of latitude
    steps = [48.0, 48.0 + 80 * metre, 48.0 + 160 * metre, None, 48.0 + 500 * metre]
    found = places(steps, [2.0, 2.0, 2.0, None, 2.0]).tolist()
    assert found == [0, 0, 0, -1, 1]
    assert places([60.0, 60.0], [179.9995, -179.9995]).tolist() == [0, 0]  # across the date line
    assert places([None], [None]).tolist() == [-1]
