# SPDX-License-Identifier: Apache-2.0
"""The JSON lines between agent and splitter, end against end without a socket."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.errors import NotFoundError, OwnedError
from replicator.control.splitter import (
    NEWS,
    PROTOCOL,
    AgentSide,
    Answer,
    Answered,
    AnyRequest,
    AppendDomainXml,
    CloseStream,
    DeclareDisk,
    DiskDeclared,
    Done,
    DropConnections,
    Hello,
    HelloAnswer,
    LatencyStatus,
    LineBuffer,
    Mark,
    Marked,
    OpenStream,
    ProtocolError,
    Ready,
    Refused,
    Reload,
    Reloaded,
    RemoveDisk,
    RemoveGroup,
    Resync,
    SplitterDiskStatus,
    SplitterGroupStatus,
    SplitterSide,
    SplitterStatus,
    StreamOpened,
    Subscribe,
    SyncBegin,
    encode_error,
    encode_ok,
    encode_status,
)

STREAM = "6f1c2d0e-0000-4000-8000-000000000001"
EXCHANGES: list[tuple[AnyRequest, Answer]] = [
    (Hello(id=1), HelloAnswer(pid=9, instance=STREAM, version="0.1.0")),
    (Subscribe(id=2), Done()),
    (
        OpenStream(id=3, group="g", above_ordinal=4, reason="start"),
        StreamOpened(stream=STREAM, ordinal=5, first_lsn=(1 << 64) - 1),
    ),
    (DeclareDisk(id=4, group="g", disk="d", size=512, instance=STREAM), DiskDeclared(index=0)),
    (SyncBegin(id=5, group="g", disk="d", reason="first"), Done()),
    (Ready(id=6, group="g", disk="d", connection=1), Done()),
    (AppendDomainXml(id=7, group="g", domain="v", xml="<domain>\n</domain>"), Done()),
    (Mark(id=8, group="g", label="vor dem Ärger\u2028"), Marked(lsn=64, time_ns=1)),
    (Resync(id=9, group="g"), Done()),
    (RemoveDisk(id=12, group="g", disk="vda"), Done()),
    (Reload(id=13), Reloaded(changes=["group h: added"])),
    (RemoveGroup(id=14, group="g"), Done()),
    (CloseStream(id=10, group="g", reason="stopped", final_cut=True), Done()),
    (DropConnections(id=11, group="g"), Done()),
]
STATUS = SplitterStatus(
    instance=STREAM,
    groups=[
        SplitterGroupStatus(
            name="g",
            state="ready",
            reason="",
            stream=STREAM,
            ordinal=5,
            first_lsn=0,
            end_lsn=4160,
            last_cut_time_ns=7,
            held_until_ns=8,
            disks=[
                SplitterDiskStatus(
                    name="d", index=0, instance=STREAM, size=512, connected=1, state="complete"
                )
            ],
            memory_bytes=4160,
            disk_bytes=0,
            latency=LatencyStatus(bounds_us=[10, 100], counts=[1, 0, 0], sum_us=4, count=1),
            requests=1,
            bytes=4096,
        )
    ],
)


@pytest.mark.parametrize(("request_", "answer"), EXCHANGES, ids=lambda item: type(item).__name__)
def test_a_request_and_its_answer_cross_unchanged(request_: AnyRequest, answer: Answer) -> None:
    agent, splitter = AgentSide(), SplitterSide()
    assert splitter.receive_data(agent.send(request_)) == [request_]
    assert agent.receive_data(encode_ok(request_, answer)) == [Answered(request_.id, answer, None)]


@pytest.mark.parametrize(("request_", "answer"), EXCHANGES, ids=lambda item: type(item).__name__)
def test_both_ends_ignore_fields_that_they_do_not_know(
    request_: AnyRequest, answer: Answer
) -> None:
    agent, splitter = AgentSide(), SplitterSide()
    newer = {**json.loads(agent.send(request_)), "later": [1], "and": {"more": None}}
    assert splitter.receive_data(json.dumps(newer).encode() + b"\n") == [request_]
    told = json.loads(encode_ok(request_, answer))
    told["ok"]["later"] = told["later"] = {"x": 1}
    assert agent.receive_data(json.dumps(told).encode() + b"\n") == [
        Answered(request_.id, answer, None)
    ]


def test_a_newer_splitter_may_say_more_in_a_status() -> None:
    newer = json.loads(encode_status(STATUS))
    newer["status"]["later"] = newer["status"]["groups"][0]["later"] = 1
    newer["status"]["groups"][0]["disks"][0]["later"] = 1
    assert AgentSide().receive_data(json.dumps(newer).encode() + b"\n") == [STATUS]


def test_each_order_says_with_which_protocol_it_came_and_each_protocol_what_it_brought() -> None:
    assert {request.since for request in AnyRequest.__args__} <= set(range(PROTOCOL + 1))
    assert sorted(NEWS) == list(range(1, PROTOCOL + 1))
    first = HelloAnswer(pid=9, instance=STREAM, version="0.1.0")
    assert first.protocol == 0, "version 0.1.0 told no number"


def test_every_request_is_exercised_above() -> None:
    assert {type(request) for request, _ in EXCHANGES} == set(AnyRequest.__args__)


def test_the_words_on_the_line_are_those_of_the_contract() -> None:
    line = AgentSide().send(Mark(id=7, group="g", label="x", kind="application"))
    fields = {"do": "mark", "id": 7, "group": "g", "label": "x", "kind": "application"}
    assert json.loads(line) == fields
    late = Mark(id=8, group="g", expire_ns=5, not_after_ns=9)
    fields = {"do": "mark", "id": 8, "group": "g", "expire_ns": 5, "not_after_ns": 9}
    assert json.loads(AgentSide().send(late)) == fields
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@given(st.lists(st.integers(0, len(EXCHANGES) - 1)), st.data())
def test_lines_do_not_depend_on_how_the_bytes_were_cut(
    order: list[int], data: st.DataObject
) -> None:
    agent, splitter = AgentSide(), SplitterSide()
    stream = b""
    for index in order:
        request = EXCHANGES[index][0]
        agent.send(request)
        stream += AgentSide().send(request)
        agent.receive_data(encode_ok(*EXCHANGES[index]))
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.receive_data(stream[:size])
        stream = stream[size:]
    assert found == [EXCHANGES[index][0] for index in order]


def test_an_error_arrives_as_its_class_with_its_hint() -> None:
    agent = AgentSide()
    agent.send(Resync(id=1, group="g"))
    (answered,) = agent.receive_data(encode_error(1, NotFoundError("no group 'g'", hint="look")))
    assert isinstance(answered, Answered)
    assert isinstance(answered.error, NotFoundError)
    assert (answered.error.message, answered.error.hint) == ("no group 'g'", "look")


def test_statuses_come_between_answers() -> None:
    agent = AgentSide()
    request = Subscribe(id=agent.next_id())
    agent.send(request)
    data = encode_ok(request, Done()) + encode_status(STATUS) + encode_status(STATUS)
    assert agent.receive_data(data) == [Answered(1, Done(), None), STATUS, STATUS]


@pytest.mark.parametrize(
    ("line", "id_"),
    [
        (b"{", 0),
        (b"\xff", 0),
        (b"[]", 0),
        (b'{"id":3}', 3),
        (b'{"id":3,"do":"explode"}', 3),
        (b'{"id":3,"do":"resync"}', 3),
        (b'{"id":3,"do":"resync","group":5}', 3),
        (b'{"id":"three","do":"hello"}', 0),
        (b'{"id":3,"do":"mark","group":"g","kind":"soft"}', 3),
    ],
)
def test_what_is_no_request_is_answered_and_costs_nothing_else(line: bytes, id_: int) -> None:
    good = b'{"id":4,"do":"hello"}\n'
    refused, hello = SplitterSide().receive_data(line + b"\n" + good)
    assert isinstance(refused, Refused)
    answer = json.loads(refused.line)
    assert (answer["id"], answer["error"]["name"]) == (id_, "usage")
    assert hello == Hello(id=4)


def test_empty_lines_mean_nothing() -> None:
    assert SplitterSide().receive_data(b"\n  \n\r\n") == []


def test_a_line_without_an_end_is_bounded() -> None:
    lines = LineBuffer(line_bytes_max=8)
    assert lines.receive_data(b"12345678") == []
    with pytest.raises(ProtocolError, match="longer than 8 bytes"):
        lines.receive_data(b"9")


def test_a_long_line_that_came_at_once_is_refused_too() -> None:
    with pytest.raises(ProtocolError):
        LineBuffer(line_bytes_max=8).receive_data(b"123456789\n")


@pytest.mark.parametrize(
    "line",
    [
        b"rubbish\n",
        b'{"id":1,"ok":{"lsn":"x","time_ns":1}}\n',
        b'{"id":2,"ok":{}}\n',
        b'{"id":1}\n',
    ],
)
def test_an_answer_that_makes_no_sense_ends_the_connection(line: bytes) -> None:
    agent = AgentSide()
    agent.send(Mark(id=1, group="g"))
    with pytest.raises(ProtocolError):
        agent.receive_data(line)


def test_an_older_agent_reads_a_newer_splitters_answer() -> None:
    agent = AgentSide()
    agent.send(Mark(id=1, group="g"))
    answer = b'{"id":1,"ok":{"lsn":64,"time_ns":1,"colour":"red"}}\n'
    assert agent.receive_data(answer) == [Answered(1, Marked(lsn=64, time_ns=1), None)]


def test_an_unknown_error_name_is_a_plain_failure() -> None:
    agent = AgentSide()
    agent.send(Hello(id=1))
    (answered,) = agent.receive_data(b'{"id":1,"error":{"name":"new-kind","message":"m"}}\n')
    assert isinstance(answered, Answered)
    assert answered.error is not None
    assert not isinstance(answered.error, OwnedError)
    assert answered.error.exit_code == 1
