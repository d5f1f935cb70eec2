"""Search: the largest that fits, and what helps where nothing does."""

import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.engine import peaks
from haikd.plan import estimate as estimate_lib
from haikd.plan import search


def make(peak, available=100.0, **fields):
  values = dict.fromkeys(estimate_lib.Estimate._fields)
  values.update(topology='v5e:4x4', mesh=dict(replica=1, fsdp=16, tensor=1),
                batch_size=64, microbatch=4, peak=peak, available=available)
  return estimate_lib.Estimate(**{**values, **fields})


@pytest.mark.parametrize('limit', [1, 2, 3, 4, 5, 7, 8, 13, 31, 100])
@pytest.mark.parametrize('size', [lambda n: 3 + n, lambda n: n**1.5,
                                  lambda n: n**0.5])
def test_largest_is_found(limit, size):
  assert search.largest(size, size(limit + 0.5), 1, tries=70) == min(limit, 64)


def test_line_is_followed():
  asked = []
  size = lambda n: asked.append(n) or 10 + 2 * n
  # 10 + 2 * 45 is 100: one more to learn the slope, as if all grew, one to go
  # there, one to see that it is the last.
  assert search.largest(size, 100, 4, tries=9) == 45
  assert asked == [4, 22, 45, 46]


def test_what_is_fixed_and_what_is_worth_a_try_save_tries():
  asked = []
  size = lambda n: asked.append(n) or 10 + 2 * n
  assert search.largest(size, 100, 4, tries=9, fixed=10) == 45
  assert asked == [4, 45, 46]
  asked.clear()
  assert search.largest(size, 100, 4, tries=9, fixed=10, worth=0.05) == 45
  assert asked == [4, 45]


def test_nothing_far_beyond_what_was_asked_for_is_tried():
  asked = []
  size = lambda n: asked.append(n) or 1 + n / 1e6
  assert search.largest(size, 100, 3, tries=9, fixed=1) == 3 * 64
  assert asked == [3, 192]


def test_tries_are_bounded():
  asked = []
  found = search.largest(lambda n: asked.append(n) or 0, 1, 3, tries=3)
  assert (asked, found) == ([3, 192], 192)
  asked.clear()
  size = lambda n: asked.append(n) or n**3
  search.largest(size, 40**3 + 1, 1, tries=3)
  assert len(asked) == 1 + 3


def test_one_refusal_is_between_what_is_known():
  asked = []
  size = lambda n: asked.append(n) or (n if n < 7 else 100)
  assert search.largest(size, 10, 2, tries=9) == 6
  assert asked[:2] == [2, 10]


def test_two_refusals_halve_the_way_to_the_next_guess():
  asked = []
  # The line to (100, 160) passes 100 at 64, that to (64, 124) at 52.
  size = lambda n: asked.append(n) or (n if n <= 40 else n + 60)
  assert search.largest(size, 100, 10, tries=3) == 31
  assert asked == [10, 100, 64, 31]


@pytest.mark.parametrize('fitting, more, start, options, expected', [
    # 40 fits between two refusals: the line to 55, of size 255, is followed.
    (54, 200, 10, dict(fixed=1, worth=0.05), [10, 110, 40, 55, 44]),
    # The line leads to 54. Half the way, 52, is not worth a try.
    (55, 60, 1, dict(worth=0.05), [1, 64, 51, 59, 56, 54]),
    # The line leads to 41, which is not worth a try.
    (42, 200, 10, dict(fixed=1, worth=0.1), [10, 110, 40, 55, 44])])
def test_guesses_after_refusals(fitting, more, start, options, expected):
  asked = []
  size = lambda n: asked.append(n) or (n if n <= fitting else n + more)
  search.largest(size, 100, start, tries=5, **options)
  assert asked == expected


def test_microbatch_grows_with_the_batch_and_nothing_else():
  config = config_lib.base()
  config.batch_size, config.microbatches = 128, 2
  seen = []

  def attempt(changed):  # 16 shards; a byte for every example at a time.
    seen.append((changed.batch_size, changed.microbatches))
    return make(changed.batch_size / 32, available=10.0)

  state = dict(parameters=3.0, batch=0.5)
  found = search.largest_microbatch(
      config, make(4.0, available=10.0, batch_size=128, state=state), attempt,
      compiles=6)
  assert found == 10
  # As if 3 bytes did not grow, which they do.
  assert seen == [(32 * 28, 2), (32 * 10, 2), (32 * 11, 2)]
  assert config.batch_size == 128


def test_no_limit_no_search():
  assert search.largest_microbatch(
      config_lib.base(), make(4.0, available=None), None, compiles=1) is None


def test_remedies_are_tried_one_at_a_time_and_sorted():
  config = config_lib.base()
  config.teacher.precision = 'bfloat16'

  def attempt(changed):
    if changed.microbatches > 1:
      raise checks.ConfigError('the batch is too small')
    return make(90 if changed.student.remat == 'full' else 95)

  tried = search.remedies(config, make(120, mesh=dict(
      replica=2, fsdp=8, tensor=1)), attempt)
  assert [(x.flags, x.estimate.peak) for x in tried] == [
      ('--config.student.remat=full', 90),
      ('--config.mesh.replica=1 --config.mesh.fsdp=-1', 95),
      ('--config.student.precision=bfloat16', 95)]
  assert config.student.remat is None


def test_microbatches_go_down_to_one_example():
  config = config_lib.base()
  config.microbatches = 2
  tried = search.remedies(config, make(120), lambda _: make(100))
  # One replica is there already: that is no change.
  assert {x.flags for x in tried} == {
      '--config.microbatches=8', '--config.student.remat=full',
      '--config.student.precision=bfloat16',
      '--config.teacher.precision=bfloat16'}


GIB = peaks.GIB


@pytest.mark.parametrize('peaks, match', [
    ((80, 90), r'5\.00 GiB missing\. --a=1 fits with 20\.00 GiB left\.$'),
    ((100,), r'--a=1 fits with 0\.00 GiB left\.$'),
    ((102, 103), r'--a=1 helps most, and still misses 2\.00 GiB\. Add chips, '
                 r'or several of: --a=2\.$'),
    ((), r'v5e:4x4: 105\.00 GiB needed, 100\.00 GiB available, '
         r'5\.00 GiB missing\. Add chips\.$'),
])
def test_error_says_by_how_much_and_what_helps(peaks, match):
  tried = [search.Remedy(f'--a={i}', make(peak * GIB, 100 * GIB))
           for i, peak in enumerate(peaks, start=1)]
  error = search.does_not_fit(make(105 * GIB, 100 * GIB), tried)
  assert isinstance(error, checks.DoesNotFitError) and error.exit_code == 5
  with pytest.raises(checks.DoesNotFitError, match=match):
    raise error
