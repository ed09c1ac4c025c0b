import torch

from zoo.ops.flip import flip_boxes, flip_images


def test_flips_of_images_and_boxes_are_their_own_inverse() -> None:
    """Within each image's own width: 5 of 6 columns in the first, all in the second."""
    images = torch.arange(36.0).view(2, 3, 1, 6)
    sizes = torch.tensor([[5.0, 1.0], [6.0, 1.0]])
    mirrored = flip_images(images, sizes)
    assert mirrored[0, 0, 0].tolist() == [4, 3, 2, 1, 0, 5]
    assert mirrored[1, 0, 0].tolist() == [23, 22, 21, 20, 19, 18]
    assert torch.equal(flip_images(mirrored, sizes), images)
    boxes = torch.tensor([[[1.0, 0, 3, 1]], [[1.0, 0, 3, 1]]])
    assert flip_boxes(boxes, sizes)[:, 0].tolist() == [[2, 0, 4, 1], [3, 0, 5, 1]]
