"""Your own Haiku network, weights and arrays, from Python alone.

  python docs/examples/your_weights.py

A network that was trained elsewhere teaches a smaller one, which then answers
requests.
"""

import pathlib
import tempfile

import haiku as hk
import jax
import numpy as np

import haikd


@haikd.register_model(taps=dict(features='hidden'))
def perceptron(x, *, is_training, num_classes, width=64):
  """Any Haiku function is a network; `haikd.tap` offers what is inside."""
  del is_training
  hidden = haikd.tap('hidden', jax.nn.relu(hk.Linear(width)(x)))
  return hk.Linear(num_classes)(hidden)


def main():
  """Distils, and asks the student for five names."""
  folder = pathlib.Path(tempfile.mkdtemp())
  rng = np.random.default_rng(0)
  x = rng.normal(size=(600, 8)).astype(np.float32)
  animals = np.array(['cat', 'dog', 'eel'])[x[:, :3].argmax(axis=-1)]

  # Stands for what you have: parameters and state, as Haiku has them.
  teacher = hk.transform_with_state(
      lambda x: perceptron(x, is_training=False, num_classes=3))
  params, state = teacher.init(jax.random.key(0), x[:1])
  haikd.save_network(folder / 'teacher.npz', params, state)

  data = haikd.data.from_arrays(
      train=dict(x=x[:400], label=animals[:400]),
      validation=dict(x=x[400:500], label=animals[400:500]),
      test=dict(x=x[500:], label=animals[500:]))

  config = haikd.config.base()
  config.steps = 60
  config.batch_size = 40
  config.teacher.model = config.student.model = 'perceptron'
  config.teacher.init = f'npz:{folder / "teacher.npz"}'
  config.student.options = dict(width=8)
  results = haikd.train(config, folder / 'run', data=data)

  student = haikd.load(folder / 'run')
  logits = student.apply(x[500:505])
  named = [student.class_names[i] for i in np.argmax(logits, axis=-1)]
  print(', '.join(named))
  return results, student, x


if __name__ == '__main__':
  main()
