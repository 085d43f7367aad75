"""Sets, like many libraries, something for the whole process when it is imported, which is once."""

import os

os.environ["SET_BY_LATE_MODULE"] = "1"
