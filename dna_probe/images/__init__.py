"""Images: reading them truthfully, finding them on disk, looking at them in several ways, and forging them."""

from dna_probe.images.layouts import read_images as read_images
from dna_probe.images.layouts import read_unlabelled as read_unlabelled
from dna_probe.images.preprocessing import Preprocessing as Preprocessing
from dna_probe.images.reading import UnreadableImage as UnreadableImage
from dna_probe.images.reading import read_image as read_image
from dna_probe.images.sampling import draw_shots as draw_shots
from dna_probe.images.sampling import require_two_classes as require_two_classes
from dna_probe.images.sampling import split_by_group as split_by_group
from dna_probe.images.sets import ImageSet as ImageSet
