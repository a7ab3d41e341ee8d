"""Check the expectations of all experiments again, and write the verdicts into their records.

    python tools/verdicts.py [ID ...]

Rows, figures and times stay as they are. Run this after the wording of an expectation has changed."""
import sys

from dlcourse.course.experiment import find_experiments
from dlcourse.course.records import find_record, read_record, verdicts, write_record


def update(exp):
    "Write the verdicts of `exp`, its title, tolerances and what can't be compared; returns whether anything changed"
    file = find_record(exp.id)
    if not file.exists(): return False
    record = read_record(file)
    new = dict(record, title=exp.title, verdicts=verdicts(exp.expects, record['rows']), tolerance=exp.tolerance,
               not_comparable=exp.not_comparable)
    if new == record: return False
    write_record({k: v for k,v in new.items() if k not in ('schema', 'checksum')}, file)
    return True


if __name__ == '__main__':
    for exp in find_experiments(sys.argv[1:] or ['all']):
        if update(exp): print(f'{exp.id}: verdicts written')
