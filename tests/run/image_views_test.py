"""What weights say about images: whose scaling is whose."""

import haikd
from haikd import interop
from haikd.run import image_views


def described(mean, std):
  return interop.Pretrained('vit', {}, None, None, scale=(mean, std))


TEACHER, STUDENT = described((0.5,), (0.25,)), described((0.1,), (0.2,))


def resolved(networks, **fields):
  config = haikd.config.base()
  with config.ignore_type():
    config.update_from_flattened_dict(fields)
  for _ in range(2):  # Resolving it again changes nothing.
    image_views.resolve(config, networks)
  return (config.data.mean, config.data.std, config.teacher.view.mean,
          config.teacher.view.std)


def test_a_student_beside_it_has_the_teachers_scaling():
  assert resolved(dict(teacher=TEACHER)) == ((0.5,), (0.25,), None, None)


def test_each_of_two_pretrained_networks_keeps_its_own():
  both = dict(teacher=TEACHER, student=STUDENT)
  assert resolved(both) == ((0.1,), (0.2,), (0.5,), (0.25,))


def test_what_the_config_gives_is_how_the_student_sees():
  given = {'data.mean': 0.3}
  assert resolved(dict(teacher=TEACHER), **given) == (
      0.3, 1.0, (0.5,), (0.25,))


def test_a_given_view_is_kept():
  given = {'data.mean': 0.3, 'teacher.view.mean': 0.4}
  assert resolved(dict(teacher=TEACHER), **given) == (0.3, 1.0, 0.4, (0.25,))
