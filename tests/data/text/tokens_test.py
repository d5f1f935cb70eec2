"""Labels of sequences, on examples small enough to write out."""

import numpy as np

from haikd.data.text import tokens


def test_position_predicts_the_token_after_it():
  labels, target_mask = tokens.next_token(
      np.array([[7, 8, 9]]), np.ones((1, 3), bool))
  assert labels.tolist() == [[8, 9, -100]]
  assert target_mask.tolist() == [[True, True, False]]


def test_padding_neither_predicts_nor_is_predicted():
  mask = np.array([[True, True, False, False], [False, False, True, True]])
  labels, target_mask = tokens.next_token(
      np.array([[7, 8, 0, 0], [0, 0, 5, 6]]), mask)
  assert labels.tolist() == [[8, -100, -100, -100], [-100, -100, 6, -100]]
  assert target_mask.tolist() == [[True, False, False, False],
                                  [False, False, True, False]]


def test_prompt_of_four_and_completion_of_three_count_at_3_4_5():
  completion = np.arange(7) >= 4
  labels, target_mask = tokens.next_token(
      np.arange(10, 17), np.ones(7, bool), completion)
  assert np.flatnonzero(target_mask).tolist() == [3, 4, 5]
  assert labels.tolist() == [-100, -100, -100, 14, 15, 16, -100]


def test_one_token_predicts_nothing():
  labels, target_mask = tokens.next_token(np.array([3]), np.array([True]))
  assert labels.tolist() == [-100]
  assert target_mask.tolist() == [False]


def test_the_end_of_a_document_does_not_predict_the_next():
  segments = np.array([1, 1, 2, 2, 2, 0])
  labels, target_mask = tokens.next_token(
      np.array([5, 6, 7, 8, 9, 0]), segments > 0, segments=segments)
  assert labels.tolist() == [6, -100, 8, 9, -100, -100]
  assert target_mask.tolist() == [True, False, True, True, False, False]
