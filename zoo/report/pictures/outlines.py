"""Outlines of masks as SVG path data."""

import numpy as np
from jaxtyping import Bool, UInt8

_TOLERANCE = 0.4  # pixels of the picture by which an outline may be simplified


def trace(mask: Bool[np.ndarray, "H W"] | UInt8[np.ndarray, "H W"], scale: float) -> str:
    """Outlines of a mask and of its holes, to be filled by the even-odd rule; "" for an empty mask.

    Args:
        mask: in pixels of the image.
        scale: pixels of the picture per pixel of the image.
    """
    import cv2  # slow to import

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return ""
    top, left = int(rows[0]), int(columns[0])
    cut = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    # Contours go through the centres of the pixels at the edge. Of doubled pixels these are within 1/4 of the edge.
    doubled = np.ascontiguousarray(cut, np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in contours:
        points = (contour[:, 0].astype(np.float32) / 2 + 0.25 + np.array([left, top], np.float32)) * scale
        simple = cv2.approxPolyDP(np.ascontiguousarray(points)[:, None], _TOLERANCE, True)[:, 0]
        corners = simple if len(simple) > 2 else points  # of the smallest nothing would be left
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners.tolist()) + "Z")
    return "".join(parts)
