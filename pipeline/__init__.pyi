from pipeline.evaluation.definition import Eval as Eval
from pipeline.evaluation.gates import AtLeast as AtLeast
from pipeline.evaluation.gates import AtMost as AtMost
from pipeline.evaluation.gates import NeverBreak as NeverBreak
from pipeline.evaluation.gates import NoWorse as NoWorse
from pipeline.faults import InvalidRow as InvalidRow
from pipeline.job.attachments import audio as audio
from pipeline.job.attachments import image as image
from pipeline.job.attachments import media as media
from pipeline.job.job import Job as Job

__version__: str
__all__ = ["AtLeast", "AtMost", "Eval", "InvalidRow", "Job", "NeverBreak", "NoWorse", "audio", "image", "media"]
