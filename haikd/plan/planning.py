"""What a training run would take on chips that are not here: `--mode=plan`."""

from collections.abc import Callable, Sequence
from typing import Any, Optional

import jax

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import notes
from haikd.data import description
from haikd.engine import mesh as mesh_lib
from haikd.engine import peaks
from haikd.engine import program as program_lib
from haikd.objective import build as build_lib
from haikd.plan import chips
from haikd.plan import compiling
from haikd.plan import estimate as estimate_lib
from haikd.plan import others
from haikd.plan import picture
from haikd.plan import search
from haikd.run import chain
from haikd.run import console
from haikd.run import programs
from haikd.run import recorded
from haikd.run import resolve
from haikd.storage import files
from haikd.storage import paths

FILE = 'plan.json'

Build = Callable[[config_lib.ConfigDict, Sequence[Any]], compiling.Step]


def plan(config: config_lib.ConfigDict,
         topologies: Sequence[str],
         workdir: files.Path,
         *,
         build: Optional[Build] = None,
         compiles: int = 4,
         debug: bool = False) -> list[estimate_lib.Estimate]:
  """Compiles the training step for each topology and says what it takes.

  Prints a table, writes `plan.json` and draws `plan.png` in the workdir, as
  soon as the step is compiled for each topology. How long other programs of a
  run compile, and the largest microbatch, are added when they are known.

  Args:
    config: a validated config, its plugins imported.
    topologies: names, as `chips.parse_topology` takes them.
    workdir: where to write; its folder is made.
    build: makes the step of a config for some devices; `build_step` by default.
    compiles: at most so many further steps are compiled to find the largest
      microbatch of a topology, or a remedy; with 0 nothing but the step of
      each topology is compiled.
    debug: show what the compiler writes to standard error.

  Returns:
    An estimate for each topology.

  Raises:
    ConfigError: an unknown topology, or a config that cannot work on it.
    DoesNotFitError: a step needs more memory than a chip has. It is raised
      after all topologies are planned, shown and written.
  """
  build = build or build_step
  workdir = paths.as_path(workdir)
  try:
    paths.make_folder(workdir)
  except OSError as err:
    raise checks.DataError(
        f'--workdir must be a writable folder; got {workdir} '
        f'({checks.one_line(err)}). Choose another --workdir.') from err
  requested = [chips.parse_topology(name) for name in topologies]
  on_gpu = any(topology.chip == 'gpu' for topology in requested)
  compiling.prepare(platform='cuda,cpu' if on_gpu else 'cpu')
  chips.reserve(requested)
  attempts = []
  for topology in requested:
    with compiling.quiet(debug):
      devices = chips.find_devices(topology)
    attempts.append(_Attempt(topology, devices, build, debug))
    attempts[-1].build(config)  # A wrong config fails before any compile.
  estimates = [attempt(config) for attempt in attempts]
  _show(estimates)
  _write(workdir, estimates, attempts)
  picture.plot_plans(workdir, estimates)
  for attempt, estimate in zip(attempts, estimates):
    if compiles and search.fits(estimate):
      attempt.compile_others()
      others.show(attempt.topology.name, attempt.programs)
      _write(workdir, estimates, attempts)
  error = None
  for i, (attempt, estimate) in enumerate(zip(attempts, estimates)):
    if not search.fits(estimate):
      tried = search.remedies(config, estimate, attempt) if compiles else []
      error = error or search.does_not_fit(estimate, tried)
    elif compiles and estimate.available is not None:
      print(f'{estimate.topology}: the largest microbatch that fits is looked '
            f'for, with at most {compiles} further compilations', flush=True)
      most = search.largest_microbatch(
          config, estimate, attempt, compiles=compiles)
      estimates[i] = estimate._replace(largest_microbatch=most)
      _write(workdir, estimates, attempts)
      print(f'{estimate.topology}: the largest microbatch that fits is {most}',
            flush=True)
  if error:
    raise error
  return estimates


def build_step(config: config_lib.ConfigDict,
               devices: Sequence[Any]) -> compiling.Step:
  """Returns the training step of the student, with nothing allocated.

  Args:
    config: a validated config, its plugins imported.
    devices: where it would run; they need not be here.

  Raises:
    ConfigError: the config cannot work on them.
    DataError: the data set has no spec, and cannot be read either.
  """
  config = resolve.from_pretrained(chain.links(config, '')[-1].config)
  mesh = mesh_lib.build_mesh(config.mesh, devices)
  mesh_lib.check_batch_size(mesh, config.batch_size, config.microbatches)
  spec, num_classes, task = description.describe(config)
  known = None
  if config.teacher.records:
    known = recorded.describe(config, num_classes)
    spec = known.with_targets(spec)
  config = resolve.with_task(config, task)
  program = program_lib.build_program(
      config, spec=spec, num_classes=num_classes, mesh=mesh, recorded=known,
      has_teacher=config_lib.has_weights(config.teacher) or
      build_lib.needs_teacher(config, spec, num_classes) is not None)
  stage = program.stages[-1]
  if stage.name:
    notes.say(f'The plan is that of config.stages.{stage.name}, the last one.')
  split = jax.sharding.NamedSharding(mesh, mesh_lib.BATCH_SPEC)
  batch = mesh_lib.abstract(spec, jax.tree.map(lambda _: split, spec))
  return compiling.Step(stage.train_step, stage.abstract_state,
                        stage.abstract_frozen, batch, mesh,
                        others.of_program(config, program, spec))


class _Attempt:
  """Compiles the step of each config for one topology, once.

  Attributes:
    topology: that it compiles for.
    programs: what was compiled for the first config.
  """

  def __init__(self, topology, devices, build, debug):
    self.topology, self._devices = topology, devices
    self._chip = chips.chip_of(topology, devices)
    self._build, self._debug = build, debug
    self._known: dict[str, estimate_lib.Estimate] = {}
    self._first: Optional[compiling.Step] = None
    self.programs: list[programs.Program] = []

  def build(self, config):
    """Returns the step of a config."""
    return self._build(config, self._devices)

  def __call__(self, config):
    key = config.to_json_best_effort(sort_keys=True)
    if key not in self._known:
      step = self.build(config)
      print(f'{self.topology.name}: compiling, batch size '
            f'{config.batch_size} in {config.microbatches} microbatches',
            flush=True)
      with programs.Record() as record, programs.of('student'):
        compiled = compiling.compile_step(step, debug=self._debug)
      if self._first is None:
        self._first, self.programs = step, record.programs
      self._known[key] = estimate_lib.estimate(
          self.topology.name, step, compiled, self._chip,
          microbatches=config.microbatches)
    return self._known[key]

  def compile_others(self):
    """Compiles what a run needs beside the step of the first config."""
    assert self._first is not None, 'a step comes first'
    if self._first.others:
      print(f'{self.topology.name}: compiling what a run needs beside its step',
            flush=True)
    with programs.Record() as record:
      compiling.compile_others(self._first, debug=self._debug)
    self.programs += record.programs


def _write(workdir, estimates, attempts):
  files.write_json(workdir / FILE, [
      {**to_json(estimate), 'programs': others.to_json(attempt.programs)}
      for estimate, attempt in zip(estimates, attempts)])


def to_json(estimate: estimate_lib.Estimate) -> dict[str, Any]:
  """Returns an estimate as it is written to `plan.json`."""
  return {
      **estimate._asdict(),
      'margin': estimate.margin(),
      'sent': [sent._asdict() for sent in estimate.sent],
      'asked': [one._asdict() for one in estimate.asked],
  }


def rows(estimates: Sequence[estimate_lib.Estimate]) -> list[list[str]]:
  """Returns the table of some estimates, a column for each.

  Args:
    estimates: of one config.

  Returns:
    Rows of text, the first cell of each a heading.
  """
  table = []

  def add(heading, cell):
    cells = [cell(x) for x in estimates]
    if any(cells):
      table.append([heading, *(text or '-' for text in cells)])

  add('chips', lambda x: f'{x.devices}')
  add('mesh', lambda x: ' x '.join(map(str, x.mesh.values())))
  add('batch size', lambda x: f'{x.batch_size}')
  add('microbatch', lambda x: f'{x.microbatch}')
  for name in ('parameters', 'optimizer', 'average', 'other', 'teacher',
               'batch'):
    add(f'{name}, GiB', lambda x: x.state[name] and _gib(x.state[name]))
  add('during the step, GiB',
      lambda x: x.memory and _gib(x.memory['results'] + x.memory['scratch']))
  add('program, GiB', lambda x: x.memory and _gib(x.memory['code']))
  add('needed, GiB', lambda x: _gib(x.peak))
  add('available, GiB', lambda x: x.available and _gib(x.available))
  add('left, GiB', lambda x: _known(x.margin(), _gib))
  add('loops of unknown length', lambda x: x.open_loops and f'{x.open_loops}')
  add('TFLOP', lambda x: f'{x.flops / 1e12:.4g}')
  for axes in dict.fromkeys(s.axes for x in estimates for s in x.sent):
    sent = [next((s for s in x.sent if s.axes == axes), None)
            for x in estimates]
    table.append([f'sent over {axes}, GiB',
                  *(_gib(s.bytes) if s else '-' for s in sent)])
    for kind in dict.fromkeys(kind for s in sent if s for kind in s.kinds):
      kinds = [(s.kinds if s else {}).get(kind) for s in sent]
      table.append([f'  {kind}', *(
          f'{number[0]:,.0f} x, {_gib(number[1])}' if number else '-'
          for number in kinds)])
    table.append(['  of it hidden',
                  *(_known(s.hidden, _percent) if s else '-' for s in sent)])
  for name in estimate_lib.BINDING:
    add(f'{name}, ms', lambda x: _known(x.seconds[name], _ms))
  add('a step takes at least, ms', lambda x: _known(x.bound, _ms))
  add('bound by', lambda x: x.binds)
  add('with what is not hidden, ms', lambda x: _known(x.exposed, _ms))
  add('compiled in, s', lambda x: f'{x.compile_seconds:.0f}')
  return table


def _show(estimates):
  console.table(rows(estimates), ['per chip', *(x.topology for x in estimates)])


def _known(value: Optional[float], function: Callable[[float], str]) -> str:
  return 'not known' if value is None else function(value)


def _gib(size):
  return f'{size / peaks.GIB:.3g}'


def _percent(part):
  return f'{100 * part:.0f} %'


def _ms(seconds):
  return f'{1e3 * seconds:.4g}'
