"""What `broker doctor` tells of an Ampha center.

Here: each account, what it sees, and which of the document's ambiguities the site follows, with the
key that says so.  Not here: anything with an effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from adapters.ampha_assets import Assets
from adapters.ampha_specs import preset_specs
from adapters.ampha_tasks import SUFFIX, Kind, Task, Tasks
from adapters.ampha_wire import Api, Role
from broker.adapter import AdapterError, Check, Denied, Inventory, RemoteState

MISSING = {
    Role.TENANT: "user priorities, approvals and stop-all-jobs are not available",
    Role.SYSTEM: "what only the system's administrator may see is not available",
}


async def look_over(
    api: Api, probe: Callable[[], Awaitable[Inventory]], assets: Assets, tasks: Tasks
) -> AsyncIterator[Check]:
    """Cheapest first; what depends on a step that failed is left out."""
    for role in Role:
        if role not in api.roles:
            yield Check(f"login as {role}", True, f"not configured: {MISSING[role]}")
            continue
        check = await _login(api, role)
        yield check
        if role is Role.USER and not check.ok:
            return
    for step in (_capacity(probe), _images(assets), _specs(api), _tasks(api, tasks)):
        try:
            async for check in step:
                yield check
        except AdapterError as error:
            yield Check("reading", False, f"{type(error).__name__}: {error}")
    for path, used in api.detours.items():
        yield Check("path", True, f'{path} is at {used}; to say so: paths = {{ "{path}" = "{used}" }}')


async def _login(api: Api, role: Role) -> Check:
    try:
        account = await api.account(role)
    except Denied as error:
        return Check(f"login as {role}", False, str(error))
    except AdapterError as error:
        return Check(f"login as {role}", False, f"{error}: is base_url right, and ca_file?")
    said = f"{account.name}, user id {account.id}, user group {account.department}, tenant {account.tenant}"
    return Check(f"login as {role}", True, f"{said}; password_mode is {api.settings.password_mode}")


async def _capacity(probe: Callable[[], Awaitable[Inventory]]) -> AsyncIterator[Check]:
    inventory = await probe()
    nodes = sum(pool.nodes for pool in inventory.pools)
    told = f"{len(inventory.pools)} pools with {nodes} nodes, {inventory.queue_length} instances waiting"
    hint = "" if inventory.pools else ": is user_group_id that of a group with resource groups?"
    yield Check("capacity", bool(inventory.pools), told + hint)
    for name, reason in inventory.quarantined:
        yield Check(f"capacity of {name}", False, reason)


async def _images(assets: Assets) -> AsyncIterator[Check]:
    images = await assets.images()
    yield Check("images", bool(images), f"{len(images)} versions" + ("" if images else ": no job can start"))


async def _specs(api: Api) -> AsyncIterator[Check]:
    """Whether the site wants preset specs cannot be asked (3.3): that it lists some is a hint."""
    specs, preset = await preset_specs(api), api.settings.preset
    hint = "" if preset or not specs else '; if it refuses tasks without one, set spec_mode = "preset"'
    mode = "preset" if preset else "free"
    yield Check(
        "specs", bool(specs) or not preset, f"spec_mode is {mode}, the platform lists {len(specs)}{hint}"
    )


async def _tasks(api: Api, tasks: Tasks) -> AsyncIterator[Check]:
    found: list[Task] = []
    for store in (Kind.OPERATOR, Kind.FINE_TUNE):
        found += await tasks.pages(store)
    yield Check("tasks", True, f"{len(found)} in the lists; task_api is {api.settings.task_api}")
    unknown = sorted({task.word for task in found if task.state is RemoteState.UNKNOWN})
    told = f"words that are not documented, taken as UNKNOWN: {', '.join(unknown)}"
    yield Check("task states", not unknown, told if unknown else "every word is known")
    longer = [task.name for task in found if SUFFIX.search(task.name[-9:])]
    if longer:
        yield Check("task names", True, f"this site adds to names: {longer[0]}; they are found all the same")
