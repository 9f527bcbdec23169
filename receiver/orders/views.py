# SPDX-License-Identifier: Apache-2.0
"""Views: a point's disks, to be looked at while replication goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from receiver.blocks.holes import Extents
from receiver.data_dir.reserve import Reserve
from receiver.orders.choosing import Chooser
from receiver.orders.groups import KnownGroups
from receiver.points.figures import GroupFigures
from receiver.views.files import ViewDisk
from receiver.views.fine_view import GroupView
from receiver.views.open_views import Views
from receiver.views.options import view_options
from replicator.base.errors import DamageError
from replicator.control.orders import CLOSE_VIEW, OPEN_VIEW, VIEWS
from replicator.control.requests import NoRequest, ViewRequest
from replicator.control.service import Binding, Call, answer
from replicator.control.types import Chosen, Nothing, View


class ViewOrders:
    """`agents`: who may feed each group, and so may read it."""

    def __init__(
        self,
        groups: KnownGroups,
        chooser: Chooser,
        views: Views,
        agents: Mapping[str, Sequence[str]],
        reserve: Reserve,
    ) -> None:
        self._groups = groups
        self._chooser = chooser
        self._views = views
        self._agents = agents
        self._reserve = reserve

    def answers(self) -> list[Binding]:
        return [
            answer(VIEWS, self.listed),
            answer(OPEN_VIEW, self.open),
            answer(CLOSE_VIEW, self.close),
        ]

    async def listed(self, _call: Call[NoRequest]) -> list[View]:
        return self._views.listed()

    async def open(self, call: Call[ViewRequest]) -> Chosen[View]:
        asked = call.request
        worker = self._groups.worker(asked.group)
        options = view_options(asked, self._agents.get(asked.group, ()))
        if options.listen is None:
            self._views.check_room(asked.group)
        await worker.aside.run(self._reserve.ready, "a view")
        chosen = await self._chooser.choose(worker, asked.at, asked.zone)
        options = replace(options, writes=chosen.writes)
        shown = await worker.ordered.open_view(
            chosen.point,
            call.report,
            chosen.writes,
            unverified=asked.unverified and chosen.choice.point.unverified,
        )
        disks = [
            ViewDisk(name, size, _DiskOf(shown, name, worker.figures)) for name, size in shown.disks
        ]
        view = await self._views.open(asked.group, chosen.choice.point, disks, shown.close, options)
        return Chosen(choice=chosen.choice, result=view)

    async def close(self, call: Call[NoRequest]) -> Nothing:
        await self._views.close(call.name)
        return Nothing()


class _DiskOf:
    """One disk of a point, as an export reads it."""

    def __init__(self, view: GroupView, disk: str, figures: GroupFigures) -> None:
        self._view = view
        self._disk = disk
        self._figures = figures

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._view.read(self._disk, offset, length)
        except DamageError:
            self._figures.found_damage("view")
            raise

    def extents(self, offset: int, length: int) -> Extents:
        return self._view.extents(self._disk, offset, length)
