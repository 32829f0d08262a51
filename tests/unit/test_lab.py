"""What can be said of the lab without one."""

import json

from tcpfleet import lab


def test_a_lab_that_is_taken_down_while_it_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "OWNER", tmp_path / "owner.json")
    lab.OWNER.write_text(json.dumps({"checkout": str(tmp_path), "hosts": [["s1", "10.77.0.11"]]}))
    owner = lab._owner()
    lab.OWNER.unlink()
    monkeypatch.setattr(lab, "_owner", lambda: owner)
    assert lab.status() == lab.LabStatus(tmp_path, ())
