"""What the tests of a transform module use; neither needs a server.

`load` gives a module as a worker loads it, `derive` what one document yields, `react` what a trigger yields for one
change, `apply` a database in memory in which changes were carried out. Inside `personal_key` there is a key for
pseudonyms. A pytest plugin comes with it: the fixture `distributary_mongo` gives a private MongoDB.
"""

from distributary.personal import personal_key
from distributary.plugins import load_module as load
from distributary.testing.applying import Change, Deleted, apply
from distributary.testing.deriving import MAX_RECORDS, Collections, NotDerived, NotPure, Records, derive
from distributary.testing.reacting import react

__all__ = [
    "MAX_RECORDS",
    "Change",
    "Collections",
    "Deleted",
    "NotDerived",
    "NotPure",
    "Records",
    "apply",
    "derive",
    "load",
    "personal_key",
    "react",
]
