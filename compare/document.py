from compare.report.document import *  # noqa: F403
