"""The report in Chinese: English text -> Chinese text, a table of words without logic (see `said.translate`).

`TABLE` has every text of the templates, of `said(...)` and of the tables of words, and what run.json and the hosts
bring along finished: walls, warnings, statuses. A key with {values} stands for every text that fits it. A test
holds the table against the sources: nothing is missing, and nothing is left over.
"""

from __future__ import annotations

OURS = {
    # ---- headings, columns, units
    "% of all CPUs": "占全部 CPU 的 %",
    "After": "之后",
    "Also": "另外",
    "Asked": "要求值",
    "At (s)": "时刻（秒）",
    "Backlog (connections)": "backlog（连接数）",
    "Balance of workers": "工作进程的均衡",
    "Before": "之前",
    "Busiest": "最忙者",
    "Busiest / mean": "最忙 / 平均",
    "By host, and where the numbers come from": "按主机细分，以及数字的来源",
    "Bytes per end": "每端字节数",
    "bytes per end, all machines": "字节/端，全部机器合计",
    "CPU (s)": "CPU（秒）",
    "CPU of the server over time": "服务端 CPU 随时间的变化",
    "CPU over time": "CPU 随时间的变化",
    "CPU s/s": "CPU 秒/秒",
    "CPU seconds": "CPU 秒",
    "Client side (sockets)": "客户端一侧（套接字）",
    "Command": "命令",
    "Compared by": "比较依据",
    "Connect latency by percentile (ms)": "建连延迟分位数（毫秒）",
    "Connect latency over time": "建连延迟随时间的变化",
    "Connections": "连接数",
    "Connections over time": "连接数随时间的变化",
    "Connections the server counts, over time": "服务端自己统计的连接数随时间的变化",
    "Connects per second": "每秒建连数",
    "Conntrack / limit (entries)": "连接跟踪 / 上限（条目）",
    "Counted by": "计数方式",
    "Counter": "计数器",
    "Descriptors": "描述符",
    "descriptors": "描述符",
    "Died": "异常退出",
    "Difference": "差值",
    "Echoes per second": "每秒回显数",
    "Ends of connections": "连接端数",
    "Equal on both sides ({n})": "两侧相同（{n} 项）",
    "Error": "错误",
    "Errors": "错误",
    "Evidence": "证据",
    "Failed": "失败",
    "Fails if": "判为失败的条件",
    "Figure": "指标",
    "First and last": "首次与末次",
    "Fix": "处置办法",
    "Free memory over time": "可用内存随时间的变化",
    "Growth (MiB)": "增长（MiB）",
    "High": "数量多时",
    "Host": "主机",
    "Hosts": "主机",
    "In force under load": "负载下的生效值",
    "Increase (events)": "增量（次）",
    "Is it one?": "算不算差异？",
    "Kernel": "内核",
    "Kernel counters over time": "内核计数器随时间的变化",
    "Kernel counters that moved": "有变化的内核计数器",
    "Kernel log": "内核日志",
    "Key": "参数",
    "Kind": "种类",
    "Latency": "延迟",
    "Latency (milliseconds)": "延迟（毫秒）",
    "Latency by percentile": "延迟分位数",
    "Latency spectrum": "延迟分布谱",
    "Limits and sysctls in force": "生效的限制与内核参数",
    "Line": "日志行",
    "Listener": "监听地址",
    "Listener queue": "监听队列",
    "Load, 1 min / CPUs": "1 分钟负载 / CPU 数",
    "Logs": "日志",
    "Longest turn (ms)": "最长一轮（毫秒）",
    "Mean": "平均",
    "Meaning": "含义",
    "Measured": "实测值",
    "Memory (MiB)": "内存（MiB）",
    "Memory free / total (MiB)": "可用内存 / 总内存（MiB）",
    "Memory of": "内存归属",
    "Memory of TCP buffers over time": "TCP 缓冲区内存随时间的变化",
    "Memory of the server over time": "服务端内存随时间的变化",
    "Memory per connection": "每条连接的内存",
    "Memory, open files, load": "内存、打开文件数与负载",
    "MiB": "MiB",
    "More warnings of the clients": "客户端的其他警告",
    "More without an answer": "其他没有应答的",
    "No answer": "没有应答",
    "Observed": "观测",
    "Open connections over time": "打开的连接数随时间的变化",
    "Open files / limit": "打开文件数 / 上限",
    "Open files over time": "打开文件数随时间的变化",
    "Other counters": "其他计数器",
    "Over time, and by percentile": "随时间的变化与分位数",
    "Phase": "阶段",
    "Plan, values": "计划的各项取值",
    "Processes": "进程数",
    "Raw files": "原始文件",
    "Repeat with": "重复本次压测的命令",
    "Response latency by percentile (ms)": "响应延迟分位数（毫秒）",
    "Response latency over time": "响应延迟随时间的变化",
    "Result": "结果",
    "Role": "角色",
    "Run": "运行",
    "Sample": "样例",
    "Server processes": "服务端进程",
    "Server side (sockets)": "服务端一侧（套接字）",
    "Setting": "设置",
    "Side": "哪一侧",
    "Started": "开始时间",
    "State": "状态",
    "Status": "状态",
    "TCP objects (MiB)": "TCP 内核对象（MiB）",
    "TCP objects in the kernel": "内核中的 TCP 对象",
    "TCP states of the port": "该端口的 TCP 状态",
    "TCP states over time, client side": "TCP 状态随时间的变化，客户端一侧",
    "TCP states over time, server side": "TCP 状态随时间的变化，服务端一侧",
    "The hosts over time": "主机随时间的变化",
    "The load over time": "负载随时间的变化",
    "The runs": "参与比较的运行",
    "Thresholds": "阈值",
    "Took (s)": "耗时（秒）",
    "Tuning": "调优",
    "Unit": "单位",
    "Verdict": "结论",
    "Waiting (connections)": "排队中（连接数）",
    "Wall": "瓶颈",
    "Warning": "警告",
    "What": "项目",
    "What came of it": "结果如何",
    "What could not be read, and the raw files": "未能读取的内容与原始文件",
    "What was set differently": "哪些设置不同",
    "When": "时间点",
    "Where": "位置",
    "Why": "原因",
    "Worker": "工作进程",
    "Worker by worker": "逐个工作进程",
    "Workers": "工作进程数",
    "after": "之后",
    "and {n} more": "等另外 {n} 台",
    "at the peak": "峰值时",
    "before": "之前",
    "better": "变好",
    "comparison": "比较",
    "connections": "连接",
    "connections established": "已建立的连接",
    "connections failed": "失败的连接",
    "connections of each client": "每个客户端的连接数",
    "connections open at the peak": "峰值时打开的连接",
    "connections requested": "要求的连接",
    "connections verified byte for byte": "逐字节校验通过的连接",
    "connects/s": "建连/秒",
    "counted by {source} in {seconds} s": "由 {source} 计数，用时 {seconds} 秒",
    "Counters of ordinary work": "正常工作的计数器",
    "By host, before and after": "按主机列出之前与之后的值",
    "Where most": "增量最大之处",
    "None of those that tell of trouble.": "表示有问题的计数器都没有变化。",
    "echoes lost": "丢失的回显",
    "echoes mismatched": "内容不符的回显",
    "echoes sent": "发出的消息",
    "echoes verified": "校验通过的回显",
    "echoes/s": "回显/秒",
    "ended": "结束时间",
    "equal": "相等",
    "events/s": "次/秒",
    "fail": "失败",
    "figure": "指标",
    "figures of machines": "各机器的数值",
    "held": "未触发",
    "hold": "保持阶段",
    "hosts": "主机",
    "Hosts that are more even": "更均衡的主机",
    "in force": "已生效",
    "its end": "末尾部分",
    "kinds of errors": "错误种类",
    "listeners observed": "观测到的监听端",
    "lsof (files)": "lsof（文件）",
    "machine": "机器",
    "max ms": "最大 毫秒",
    "measurements": "测量次数",
    "measurements, log scale": "测量次数，对数刻度",
    "mode": "模式",
    "ms, log scale": "毫秒，对数刻度",
    "network stack": "网络栈",
    "nofile, soft / hard (files per process)": "nofile 软 / 硬限制（每进程文件数）",
    "none": "无",
    "not in force": "未生效",
    "changed since": "此后被改动",
    "now": "当前",
    "observations of machines": "对机器的观测",
    "observations of servers": "对服务端的观测",
    "open files": "打开的文件",
    "other hosts": "其他主机",
    "over time: {name}": "随时间的采样：{name}",
    "p50 ms": "p50 毫秒",
    "p90 ms": "p90 毫秒",
    "p99 ms": "p99 毫秒",
    "p99.9 ms": "p99.9 毫秒",
    "peak": "峰值时",
    "plan": "计划",
    "present": "当前",
    "ramp": "建连阶段",
    "run": "运行",
    "server processes": "服务端进程",
    "servers": "服务端",
    "settings asked for": "要求过的设置",
    "sockets": "套接字",
    "soft / hard": "软 / 硬",
    "started": "开始时间",
    "state of hosts": "主机状态",
    "stress clients": "压测客户端数",
    "target": "目标",
    "tcpfleet": "tcpfleet 版本",
    "tcpfleet report": "tcpfleet 报告",
    "things could not be read": "未能读取的项目",
    "unlimited": "无限制",
    "value": "值",
    "whole machine": "整台机器",
    "worse": "变差",
    "{group}: highest": "{group}：最高",
    "{group}: lowest": "{group}：最低",
    "{group}: median": "{group}：中位数",
    "{n} more are in report.json.": "另有 {n} 项见 report.json。",
    "{names} and {n} more": "{names} 等另外 {n} 台",
    # ---- the verdict and what is missing
    "PASS: {counts} First limit in sight: {wall}.": "通过：{counts}最先会碰到的限制：{wall}。",
    "PASS: {counts} No wall was met.": "通过：{counts}没有遇到瓶颈。",
    "FAIL: {counts} The wall: {wall}.": "失败：{counts}瓶颈：{wall}。",
    "FAIL: {counts} {why}": "失败：{counts}{why}",
    "A threshold was crossed: see below.": "有阈值被突破，见下文。",
    "Echoes were lost or came back altered: see below.": "有回显丢失或内容不符，见下文。",
    "The run was stopped before its end.": "压测在结束前被中止。",
    "FAIL: {counts} The wall was not identified: see the errors and counters below.": (
        "失败：{counts}未能认定瓶颈，请看下面的错误与计数器。"
    ),
    "No verdict in run.json. {counts}": "run.json 中没有结论。{counts}",
    "REFUSED: {reason}": "已拒绝：{reason}",
    "No verdict: no run was made; this is the present state of the hosts ({n}).": (
        "没有结论：没有做过压测，以下是 {n} 台主机的当前状态。"
    ),
    "{verified} of {requested} connections held, every first echo verified; {failed} failed.": (
        "要求 {requested} 条连接，保持住 {verified} 条，每条的首个回显都已校验；失败 {failed} 条。"
    ),
    "{host}, {phase}: {status}: {reason}": "{host}，{phase}：{status}：{reason}",
    "{host}: {reason}": "{host}：{reason}",
    "{host}, client {index}: {warning}": "{host}，客户端 {index}：{warning}",
    "it was not observed": "没有观测到",
    "no reason given": "没有给出原因",
    "missing": "缺失",
    "unavailable: {reason}": "无法取得：{reason}",
    "not {source}: {reason}": "未用 {source}：{reason}",
    "nothing was measured": "没有测到数据",
    "no descriptors": "没有描述符",
    "[{reason}]": "[{reason}]",
    "[not read]": "[没有读到]",
    "{words} (cut: {cut})": "{words}（已截断：{cut}）",
    "booted between the observations: counters began at 0 again": "两次观测之间重启过，计数器从 0 重新开始",
    "{hosts} are one machine (one kernel): memory, CPU, open files and packet queues are counted once.": (
        "{hosts} 是同一台机器（同一个内核）：内存、CPU、打开文件数与收包队列只计一次。"
    ),
    "{hosts} share one network stack: sockets and network counters are counted once.": (
        "{hosts} 共用一个网络栈：套接字与网络计数器只计一次。"
    ),
    "No connection.": "没有连接。",
    "No errors.": "没有错误。",
    "No host was observed.": "没有观测到任何主机。",
    "No line that matters to TCP.": "没有与 TCP 有关的日志行。",
    "No listener on the port was seen.": "没有看到该端口上的监听端。",
    "No machine was observed both before the load and at its peak.": "没有哪台机器在压测前和峰值时都被观测到。",
    "No server log was observed.": "没有观测到服务端日志。",
    "No server process was observed on any host.": "在所有主机上都没有观测到服务端进程。",
    "No workers were seen.": "没有看到工作进程。",
    "None: no host was observed both before and after a run, or nothing moved.": (
        "无：没有主机在压测前后都被观测到，或者没有变化。"
    ),
    "Not observed.": "没有观测到。",
    "Nothing that was seen.": "观测到的设置没有不同。",
    "Nothing was asked for on these hosts: they have the values below.": (
        "没有对这些主机提出过要求，它们的取值见下。"
    ),
    "Everything asked of the hosts that answered could be read.": "有应答的主机上，要读取的内容都读到了。",
    "The run has no timeline.": "这次运行没有时间线。",
    "The run measured no latency.": "这次运行没有测到延迟。",
    "There are no raw files.": "没有原始文件。",
    # ---- how to read it
    "A figure that is missing above is explained here; the raw files, beside this page, are what the hosts answered.": (
        "上文缺失的数字在这里说明原因；与本页放在一起的原始文件是各主机的原始应答。"
    ),
    "A steady height is the ramp's speed; a fall towards the end means that something ran short: source ports, "
    "memory, or the server's accept loop.": (
        "平稳的高度就是建连的速度；临近结束时下降，说明有东西不够用了：源端口、内存，或服务端的 accept 循环。"
    ),
    "Busiest worker against the mean of its host: of a server by connections (descriptors, where it does not say them), "
    "of a stress client by CPU time; 1 is even, 2 means that one process did twice its share and reaches its limit "
    "first.": (
        "最忙的工作进程与本机平均值之比：服务端按连接数（服务端自己不报告时按描述符数），压测客户端按 CPU 时间；"
        "1 表示均衡，2 表示有一个进程承担了双倍的份额，会最先到达极限。"
    ),
    "Conditions of --fail-if: one that is met makes the verdict fail, and so does one whose figure was not "
    "measured.": "--fail-if 给出的条件：任何一条成立，结论即为失败；对应指标没有测到时也算失败。",
    "Connections that the kernel has finished and the server has not accepted yet, against the most it will hold. A "
    "queue near its backlog means that the server accepts too slowly, or that the backlog (and net.core.somaxconn) "
    "is too small.": (
        "内核已完成握手、服务端尚未 accept 的连接数，以及队列的上限。"
        "队列接近 backlog，说明服务端 accept 太慢，或者 backlog（以及 net.core.somaxconn）太小。"
    ),
    "Data that waits in sockets, of the whole kernel; near net.ipv4.tcp_mem connections are cut.": (
        "整个内核中滞留在套接字里的数据；接近 net.ipv4.tcp_mem 时连接会被切断。"
    ),
    "Descriptors are open files of all processes together, one per connection and a few more. When descriptors per "
    "process come near the nofile limit, that is the wall.": (
        "描述符是所有进程打开文件的总数，每条连接一个，另有少量其他文件。单个进程的描述符接近 nofile 限制时，那就是瓶颈。"
    ),
    "Everything is in seconds since the start of the run; in long runs each point is the worst of its stretch.": (
        "横轴是运行开始以来的秒数；运行时间长时，每个点取该时段内最差的值。"
    ),
    "Failures counted by what was being done, the error the kernel gave, and the client host; none is the goal.": (
        "失败按当时的操作、内核返回的错误以及客户端主机计数；目标是没有失败。"
    ),
    "From the intended send time; the lower line is the faster side; the axis is logarithmic.": (
        "从计划的发送时刻算起；线越低越快；纵轴为对数刻度。"
    ),
    "Growth from before the load to its peak, divided by the ends of connections on the machine (two where both "
    "ends are on it); the whole machine's holds the other two and whatever else went on. Below 10,000 ends it cannot "
    "be told from that.": (
        "从压测前到峰值的内存增长，除以本机上的连接端数（两端都在本机时一条连接算两端）；"
        "整台机器的数值包含前两项以及同时发生的其他事情，少于 10,000 端时无法与之区分。"
    ),
    "How fast each side opened its connections.": "两侧各自的建连速度。",
    "How many measurements took how long, both axes logarithmic: one hump is one way of being served; a second one "
    "to the right is a queue, a retransmission or a pause that some went through.": (
        "各种耗时分别出现了多少次，两轴均为对数刻度：一个峰代表一种处理路径；"
        "右侧另有一个峰，说明一部分请求经历了排队、重传或停顿。"
    ),
    "In milliseconds: p99 = 99 of 100 took no longer. Connect: SYN to established. Service: sent to echo received. "
    "Response: from when the echo was due, so it includes waiting in the client. Lower is better; a p999 far above "
    "p99 is a queue or a retransmission (steps of 1 s and 200 ms).": (
        "单位为毫秒：p99 表示 100 次中有 99 次不超过该值。建连：从 SYN 到连接建立。服务：从发出到收到回显。"
        "响应：从应当发出的时刻算起，因此包含在客户端的等待。越低越好；"
        "p999 远高于 p99 说明有排队或重传（以 1 秒和 200 毫秒为台阶）。"
    ),
    "Increase from the observation before to the one after the run. Marked rows tell of drops, timeouts or memory; a "
    "run without a wall has few of them. Network counters belong to a network stack, packet queues to a machine.": (
        "从压测前到压测后两次观测之间的增量。做了标记的行表示丢弃、超时或内存问题，没有瓶颈的运行很少出现。"
        "网络计数器属于一个网络栈，收包队列属于一台机器。"
    ),
    "Increase per second of the counters that tell of drops, timeouts or memory; when they rise tells what they "
    "belong to.": "表示丢弃、超时或内存问题的计数器每秒的增量；何时上升，就说明与什么有关。",
    "Lines that cover each other mean the same ramp and the same height.": (
        "两线重合，说明建连过程与最终高度相同。"
    ),
    "Looked at once a second on every host; hosts of one machine are drawn once, and of many hosts the highest, the "
    "median and the lowest.": (
        "每台主机每秒采样一次；同一台机器上的主机只画一次，主机很多时只画最高、中位数与最低。"
    ),
    "Medians of each side, with the lowest and the highest of its runs; only marked rows may be taken for an effect "
    "of the settings.": "每侧的中位数，以及各次运行中的最低与最高值；只有做了标记的行才可以看作设置带来的效果。",
    "Of the client that was worst in each step, from when an echo was due; a step up that stays is a server at its "
    "limit, single peaks are pauses.": (
        "取每个时段内最差的客户端，从应当发出的时刻算起；上了台阶不再下来，说明服务端到了极限，单个尖峰是停顿。"
    ),
    "Of the client that was worst in each step: half of its connects took no longer than p50, 99 of 100 no longer "
    "than p99; a rise while connections are opened is a queue that fills.": (
        "取每个时段内最差的客户端：一半的建连不超过 p50，100 次中 99 次不超过 p99；建连期间上升，说明有队列在变满。"
    ),
    "Of the whole machine, against fs.file-max; two for each connection that has both ends on it.": (
        "整台机器的数值，上限是 fs.file-max；两端都在本机的连接每条占两个。"
    ),
    "Of whole machines. TCP objects are the kernel's own for connections (slab), besides the data in their buffers.": (
        "整台机器的数值。TCP 对象是内核为连接分配的对象（slab），不含缓冲区中的数据。"
    ),
    "Open should rise to what was requested and stay flat while connections are held; a flat top below that, or a "
    "rising failed line, is the wall. Failed and established count from the start.": (
        "“打开”应当升到要求的数目，并在保持期间持平；在其下方就走平，或“失败”上升，就是遇到了瓶颈。"
        "“失败”与“已建立”从开始起累计。"
    ),
    "Resident memory of all its processes together; without its share in the kernel.": (
        "所有进程的常驻内存之和；不含内核中的部分。"
    ),
    "Seconds of CPU per second of all its processes together: 2 are two CPUs' work.": (
        "所有进程每秒合计使用的 CPU 秒数：2 相当于两个 CPU 的工作量。"
    ),
    "Share of all CPUs of a machine that was at work; a line at 100% is the wall, whatever else is seen.": (
        "一台机器全部 CPU 中忙碌的比例；停在 100% 就是瓶颈，不论还看到什么。"
    ),
    "Sockets in each state, counted on the hosts: server side has the port as its local port, client side as its "
    "remote port. Read down a column: at the peak nearly all should be ESTAB, after the run nearly none but LISTEN "
    "and TIME-WAIT.": (
        "在主机上按状态统计的套接字数：服务端一侧以该端口为本地端口，客户端一侧以它为远端端口。"
        "按列往下看：峰值时应当几乎全是 ESTAB，结束后除 LISTEN 与 TIME-WAIT 外应当几乎没有。"
    ),
    "Sockets of the port on the servers: ESTAB should follow the connections above; a growing SYN-RECV or CLOSE-WAIT "
    "is a server that does not keep up.": (
        "服务端上该端口的套接字：ESTAB 应当与上面的连接数一致；SYN-RECV 或 CLOSE-WAIT 不断增长，说明服务端跟不上。"
    ),
    "Sockets towards the port on the clients: SYN-SENT that stays high means that the server does not answer.": (
        "客户端上连向该端口的套接字：SYN-SENT 居高不下，说明服务端没有应答。"
    ),
    "The end of each server's log, and lines of the kernel's log that name a limit, with the time since boot.": (
        "各服务端日志的末尾，以及内核日志中提到限制的行和距开机的时间。"
    ),
    "The first run of each side that has a result, from its own start.": (
        "每侧第一个有结果的运行，时间从各自的开始算起。"
    ),
    "The lower line is the faster side; the axis is logarithmic.": "线越低越快；纵轴为对数刻度。",
    "The same figures as lines: a steep end is a long tail.": "同样的数字画成线：末端陡升就是长尾。",
    "The server's own count; below ESTAB by what waits in its accept queue.": (
        "服务端自己的计数；比 ESTAB 少的部分在全连接队列中等待。"
    ),
    "The server's socket summary as the tool prints it, in sockets of its whole network stack, all ports together.": (
        "服务端的套接字汇总，按工具的原样输出；是整个网络栈、所有端口的套接字数。"
    ),
    "Values in force as read from the hosts under load, and the plan; several values on one side mean that its runs "
    "were not set alike.": (
        "负载下从主机读到的生效值，以及计划中的取值；一侧有多个值，说明这一侧各次运行的设置并不相同。"
    ),
    "Values read from the running kernel (bytes, connections, seconds or pages, as the kernel defines each key); "
    "hosts with equal values share a column. nofile is the open-file limit (files per process) of a new session.": (
        "从运行中的内核读到的值（字节、连接数、秒或页，以内核对各参数的定义为准）；取值相同的主机合为一列。"
        "nofile 是新会话的打开文件数限制（每进程）。"
    ),
    "Verified echoes in each second, all connections together.": "每秒校验通过的回显数，所有连接合计。",
    "Verified echoes in each second, all connections together; dips are moments in which the server or a client was "
    "busy with something else.": (
        "每秒校验通过的回显数，所有连接合计；下凹处是服务端或某个客户端忙于别的事情的时刻。"
    ),
    "What the kernel can still give away; the slope while connections are opened is their price.": (
        "内核还能分配的内存；建连期间的斜率就是连接的代价。"
    ),
    "What was asked of the kernel's settings, by the last `inv tune` before the run or by the files of sysctl.d, and "
    "what was in force under load; marked rows are not as asked.": (
        "压测前最近一次 `inv tune` 或 sysctl.d 中的文件对内核参数的要求，以及负载下的生效值；做了标记的行与要求不符。"
    ),
    "What was asked, of whom, and when each host was looked at; the command repeats it.": (
        "要求了什么、由谁执行、各主机何时被观测；用下面的命令可以重复。"
    ),
    "What was run on each side, and what each run came to.": "每侧运行了什么，各次运行的结果如何。",
    # ---- TCP states
    "Waits for connection requests.": "等待连接请求。",
    "One per listener: a prefork server with SO_REUSEPORT has one per worker.": (
        "每个监听端一个：使用 SO_REUSEPORT 的 prefork 服务端每个工作进程一个。"
    ),
    "The client has sent a connection request and waits for the answer.": "客户端已发出连接请求，正在等待应答。",
    "Client side: the server does not answer SYNs. Full SYN or accept queue, firewall, or a wrong address.": (
        "客户端一侧：服务端不应答 SYN。半连接或全连接队列已满、防火墙拦截，或地址有误。"
    ),
    "A request has arrived and was answered; the last step of the handshake is missing.": (
        "请求已到达并已应答，只差握手的最后一步。"
    ),
    "Server side: the accept queue is full, ACKs get lost, or a SYN flood; see tcp_max_syn_backlog and somaxconn.": (
        "服务端一侧：全连接队列已满、ACK 丢失，或遭遇 SYN 洪泛；参见 tcp_max_syn_backlog 与 somaxconn。"
    ),
    "Open: data can flow both ways.": "已打开：数据可以双向传输。",
    "The goal. Server side far above the connections the server counts: the rest waits in the accept queue.": (
        "这正是目标。服务端一侧远多于服务端自己统计的连接数时，多出的部分在全连接队列中等待。"
    ),
    "This side closed; its FIN is not yet acknowledged.": "本端已关闭，FIN 尚未得到确认。",
    "The peer is gone or its packets are lost; bounded by tcp_orphan_retries and tcp_max_orphans.": (
        "对端已消失或其报文丢失；受 tcp_orphan_retries 与 tcp_max_orphans 限制。"
    ),
    "This side closed and the peer knows; the peer has not closed yet.": "本端已关闭且对端已知晓，对端尚未关闭。",
    "The peer's program does not close its descriptors; see CLOSE-WAIT there. Orphans end after tcp_fin_timeout.": (
        "对端的程序没有关闭描述符，请看对端的 CLOSE-WAIT。孤儿连接在 tcp_fin_timeout 之后结束。"
    ),
    "The peer closed; the program here has not closed its descriptor yet.": (
        "对端已关闭，本机程序尚未关闭自己的描述符。"
    ),
    "The program here leaks descriptors or is too busy to see the end of connections.": (
        "本机程序泄漏描述符，或太忙而没有看到连接已结束。"
    ),
    "Both sides closed at the same time; the last acknowledgement is missing.": "双方同时关闭，只差最后的确认。",
    "Rare and short. Many: both ends close at once, or packets are lost.": (
        "少见且短暂。数量多说明两端同时关闭，或有丢包。"
    ),
    "Closed here after the peer; waits for the acknowledgement of its FIN.": (
        "在对端之后关闭，正在等待对自己 FIN 的确认。"
    ),
    "Lost packets, or a peer that vanished.": "丢包，或对端已消失。",
    "This side closed first; the address pair rests for 60 s so that late packets do no harm.": (
        "本端先关闭；这对地址静置 60 秒，以免迟到的报文造成影响。"
    ),
    "Normal after a run. On a client it holds source ports: use more source addresses, or tcp_tw_reuse.": (
        "压测之后属于正常。在客户端上它占用源端口：请使用更多源地址，或开启 tcp_tw_reuse。"
    ),
    "The kernel keeps no table of these: nearly always 0.": "内核不保留这类连接的表，几乎总是 0。",
    # ---- kernel counters
    "SYN cookies sent: the SYN queue was full": "发出的 SYN cookie：半连接队列已满",
    "SYN cookies that came back invalid": "返回的 SYN cookie 无效",
    "SYN queue full: answered with a SYN cookie": "半连接队列已满：以 SYN cookie 应答",
    "SYN queue full: request dropped (net.ipv4.tcp_max_syn_backlog)": (
        "半连接队列已满：请求被丢弃（net.ipv4.tcp_max_syn_backlog）"
    ),
    "SYNs sent again: the first was not answered within 1 s": "重发的 SYN：第一个在 1 秒内没有应答",
    "TIME-WAIT table full (net.ipv4.tcp_max_tw_buckets)": "TIME-WAIT 表已满（net.ipv4.tcp_max_tw_buckets）",
    "accept queue full: connections dropped (backlog, net.core.somaxconn)": (
        "全连接队列已满：连接被丢弃（backlog、net.core.somaxconn）"
    ),
    "bad segments received": "收到的错误报文段",
    "connection attempts that failed": "失败的建连尝试",
    "connection requests dropped by a listener for any reason": "监听端因各种原因丢弃的连接请求",
    "connections accepted here": "在本机接受的连接",
    "connections begun from here": "从本机发起的连接",
    "connections closed by a reset: by choice (as the load client does), or data after close": (
        "以 RST 关闭的连接：主动为之（压测客户端即如此），或关闭后又收到数据"
    ),
    "connections completed by a SYN cookie": "通过 SYN cookie 完成的连接",
    "connections cut for lack of memory or too many orphans (tcp_mem, tcp_max_orphans)": (
        "因内存不足或孤儿连接过多而切断的连接（tcp_mem、tcp_max_orphans）"
    ),
    "connections given up after retransmissions": "多次重传后放弃的连接",
    "connections reset because the program closed with data unread": "程序在仍有数据未读时关闭而被重置的连接",
    "connections reset in FIN-WAIT-2 (linger)": "在 FIN-WAIT-2 中被重置的连接（linger）",
    "connections that ended by a reset; the load client closes so": "以 RST 结束的连接；压测客户端就这样关闭",
    "connections that went through TIME-WAIT": "经过 TIME-WAIT 的连接",
    "handshakes dropped by TCP_DEFER_ACCEPT": "被 TCP_DEFER_ACCEPT 丢弃的握手",
    "milliseconds TCP spent in memory pressure": "TCP 处于内存压力下的毫秒数",
    "out-of-order packets dropped for lack of buffer": "因缓冲区不足丢弃的乱序报文",
    "packets dropped from a receive queue for lack of buffer": "因缓冲区不足从接收队列丢弃的报文",
    "packets dropped: a CPU's input queue was full (net.core.netdev_max_backlog)": (
        "丢弃的报文：某个 CPU 的收包队列已满（net.core.netdev_max_backlog）"
    ),
    "packets dropped: a socket's backlog was full": "丢弃的报文：套接字的 backlog 已满",
    "packets dropped: a socket's receive queue was full": "丢弃的报文：套接字的接收队列已满",
    "packets dropped: no receive window": "丢弃的报文：没有接收窗口",
    "packets dropped: old timestamp": "丢弃的报文：时间戳过旧",
    "packets processed by the CPUs' input queues": "各 CPU 收包队列处理的报文",
    "receive queues compacted for lack of buffer (tcp_rmem)": "因缓冲区不足而压缩的接收队列（tcp_rmem）",
    "resets sent": "发出的 RST",
    "resets that could not be sent": "未能发出的 RST",
    "retransmission timers that fired": "触发的重传定时器",
    "segments received": "收到的报文段",
    "segments sent": "发出的报文段",
    "segments sent again": "重传的报文段",
    "times TCP entered memory pressure (net.ipv4.tcp_mem)": "TCP 进入内存压力的次数（net.ipv4.tcp_mem）",
    "times a CPU ran out of its packet budget (net.core.netdev_budget)": (
        "CPU 用完收包预算的次数（net.core.netdev_budget）"
    ),
    # ---- comparisons
    "A figure differs when the ranges of the two sides do not overlap and their medians are further apart than "
    "{times:g} times the larger range (and than 5%); with this many runs about one figure in a thousand does so by "
    "chance.": (
        "判定差异的标准：两侧的取值范围不重叠，且中位数之差大于较大范围的 {times:g} 倍（并大于 5%）；"
        "以这样的运行次数，约千分之一的指标会因偶然而符合。"
    ),
    "With fewer than three runs on a side the run-to-run spread is unknown: only what is beyond a generous allowance "
    "is named, and it may still be chance. Repeat the runs and compare A1,A2,A3 with B1,B2,B3.": (
        "一侧少于三次运行时，各次运行之间的波动未知：只列出超出宽松容差的差异，而且仍可能出于偶然。"
        "请重复运行，并用 A1,A2,A3 与 B1,B2,B3 比较。"
    ),
    "All settings that were seen are equal.": "观测到的设置全部相同。",
    "Settings that differ: {n}.": "不同的设置：{n} 项。",
    "Verdicts: A {a}; B {b}.": "结论：A 为 {a}；B 为 {b}。",
    "Both sides hold the same run.": "两侧含有同一次运行。",
    "The runs of {side} are not set alike: {names}.": "{side} 侧各次运行的设置不同：{names}。",
    "Figures that differ beyond the run-to-run spread: {n} of {of}.": "超出运行间波动的差异：{of} 项指标中有 {n} 项。",
    "Figures beyond the allowance (the spread is unknown): {n} of {of}.": (
        "超出容差的差异（波动未知）：{of} 项指标中有 {n} 项。"
    ),
    "No measurable effect: none of {of} figures differs beyond the run-to-run spread.": (
        "没有可测的效果：{of} 项指标中没有一项的差异超出运行间波动。"
    ),
    "No measurable effect with so few runs: none of {of} figures is beyond the allowance.": (
        "以这样少的运行次数没有可测的效果：{of} 项指标中没有一项超出容差。"
    ),
    "There are no results to compare: one side has none.": "没有可比较的结果：有一侧没有结果。",
    "{side} ({run}) has no result: the run did not end": "{side}（{run}）没有结果：运行没有结束",
    "{side} ({run}) was refused before anything connected: {reason}": "{side}（{run}）在建连之前就被拒绝：{reason}",
    "beyond the allowance of a factor of {factor:g}; the spread is unknown": "超出 {factor:g} 倍的容差；波动未知",
    "within the allowance of a factor of {factor:g}; the spread is unknown": "在 {factor:g} 倍的容差之内；波动未知",
    "beyond the run-to-run spread": "超出运行间波动",
    "more than chance makes of it; the spread is unknown": "多于偶然所致；波动未知",
    "no measurable effect: as little as chance makes": "没有可测的效果：数量与偶然相当",
    "no measurable effect: not further apart than the runs of one side": "没有可测的效果：差距不大于同侧各次运行之间",
    "no measurable effect: the ranges of the two sides overlap": "没有可测的效果：两侧的取值范围重叠",
    "not judged: one event of one run": "不作判断：只是一次运行中的一个事件",
    "only one side has this figure": "只有一侧有这项指标",
    "{kind} {point}": "{kind} {point}",
    "{phase}: {errno}": "{phase}：{errno}",
    "the sides were asked for different numbers of connections": "两侧要求的连接数不同",
}

# What comes finished: from run.json (walls, warnings, words of its fields), from the hosts, from other tables.
OUTSIDE = {
    # ---- roles, statuses, phases of errors, kinds of latency, groups and names of compared figures
    "server": "服务端",
    "client": "客户端",
    "connect": "建连",
    "echo": "回显",
    "close": "关闭",
    "service": "服务",
    "response": "响应",
    "open": "打开",
    "established": "已建立",
    "verified": "已校验",
    "failed": "失败",
    "unreachable": "不可达",
    "not observed": "没有观测到",
    "pass": "通过",
    "refused": "被拒绝",
    "applied": "已应用",
    "already": "已是该值",
    "already (higher)": "已有更高的值",
    "absent": "不存在",
    "read-only": "只读",
    "overridden": "被其他文件覆盖",
    "host-wide": "属于整台宿主机",
    "unknown": "未知",
    "rate": "速率",
    "echoes": "回显",
    "latency": "延迟",
    "memory": "内存",
    "errors": "错误",
    "counters": "内核计数器",
    "churn": "重建连接",
    "mismatched": "内容不符",
    "lost": "丢失",
    "connections/s": "连接/秒",
    "bytes/connection": "字节/连接",
    "events": "次",
    "s": "秒",
    "ms": "毫秒",
    "option": "选项",
    "version": "版本",
    "sysctl": "内核参数",
    "host": "主机",
    "source ports": "源端口",
    "nofile reachable": "可达到的 nofile",
    # ---- walls: names
    "a client host was lost": "失去了一台客户端主机",
    "a stress client died": "一个压测客户端异常退出",
    "a worker of a stress client died": "压测客户端的一个工作进程异常退出",
    "memory of {hosts}": "{hosts} 的内存",
    "open files of the machine (fs.file-max)": "整机的打开文件数（fs.file-max）",
    "TCP memory (net.ipv4.tcp_mem)": "TCP 内存（net.ipv4.tcp_mem）",
    "connection tracking table": "连接跟踪表",
    "open files of the server process (nofile)": "服务端进程的打开文件数（nofile）",
    "the server's own connection limit": "服务端自身的连接上限",
    "the server does not accept": "服务端没有 accept",
    "the server's accept queue": "服务端的全连接队列",
    "the server's SYN queue": "服务端的半连接队列",
    "connections dropped by the server's listener": "连接被服务端的监听端丢弃",
    "packets dropped before TCP saw them (net.core.netdev_max_backlog)": (
        "报文在到达 TCP 之前被丢弃（net.core.netdev_max_backlog）"
    ),
    "CPU of {hosts}": "{hosts} 的 CPU",
    "{hosts} (one machine, counted once)": "{hosts}（同一台机器，只计一次）",
    "open files of a client process": "客户端进程的打开文件数",
    "open files of the client host": "客户端主机的打开文件数",
    "memory of the client host": "客户端主机的内存",
    "nothing listens": "没有程序在监听",
    "handshakes unanswered": "握手没有应答",
    "connected but no reply": "已连接但没有应答",
    "the server mixes up replies": "服务端张冠李戴，应答错位",
    "wrong replies": "应答内容不对",
    "TLS handshake": "TLS 握手",
    "the target is out of reach": "目标不可达",
    "the server closes connections": "服务端关闭连接",
    # ---- walls: evidence; its parts are put together with semicolons
    "{count} of {of} connections were {host}'s: {sample}": "{of} 条连接中有 {count} 条属于 {host}：{sample}",
    "the kernel log says: {line}": "内核日志写道：{line}",
    "{used} of {most} were open at the peak on {hosts}": "峰值时 {hosts} 上打开了 {most} 个中的 {used} 个",
    "{count} connects failed with ENFILE": "{count} 次建连因 ENFILE 失败",
    "on {hosts} TCPAbortOnMemory grew by {aborted}, TCPMemoryPressures by {pressed}": (
        "{hosts} 上 TCPAbortOnMemory 增加 {aborted}，TCPMemoryPressures 增加 {pressed}"
    ),
    "{pages} of {most} pages were in use at the peak": "峰值时使用了 {most} 页中的 {pages} 页",
    "{used} of {most} entries were in use at the peak on {host}": "峰值时 {host} 上使用了 {most} 个条目中的 {used} 个",
    "a full table drops packets": "表满时会丢弃报文",
    "{full} of {total} server processes on {host} had all of their {limit} open files in use": (
        "{host} 上 {total} 个服务端进程中有 {full} 个用完了各自的 {limit} 个打开文件"
    ),
    "the server's log says: {line}": "服务端日志写道：{line}",
    "ListenOverflows grew by {count}, as nobody accepted": "ListenOverflows 增加 {count}，因为没有进程 accept",
    "{held} connections were established on {host} at the peak, it holds {limit}": (
        "峰值时 {host} 上建立了 {held} 条连接，它的上限是 {limit}"
    ),
    "{count} connections waited at the peak in an accept queue of {backlog} on {host}": (
        "峰值时有 {count} 条连接在 {host} 长度为 {backlog} 的全连接队列中等待"
    ),
    "ListenOverflows grew by {count} on {host}": "{host} 上 ListenOverflows 增加 {count}",
    "ListenOverflows grew by {count}": "ListenOverflows 增加 {count}",
    "its accept queue holds {backlog} (net.core.somaxconn {most})": (
        "其全连接队列长度为 {backlog}（net.core.somaxconn {most}）"
    ),
    "ListenDrops grew by {count} on {host} without an overflow of its accept queue": (
        "{host} 上 ListenDrops 增加 {count}，而全连接队列并未溢出"
    ),
    "on {host} {dropped} SYNs were dropped and {cookies} answered with a cookie for it was full": (
        "{host} 上因队列已满，{dropped} 个 SYN 被丢弃，{cookies} 个以 cookie 应答"
    ),
    "softnet dropped grew by {count} on {hosts}": "{hosts} 上 softnet dropped 增加 {count}",
    "its processors were {share}% busy or more in {busy} of {whole} s {when}": (
        "{when}的 {whole} 秒中有 {busy} 秒其处理器忙碌程度不低于 {share}%"
    ),
    "of the ramp": "建连阶段",
    "of the hold": "保持阶段",
    "{count} of {of} connections failed with {errno} ({phase}), first at {first}": (
        "{of} 条连接中有 {count} 条因 {errno}（{phase}）失败，首次在 {first}"
    ),
    "at most {peak} were open": "最多打开了 {peak} 条",
    # ---- walls: fixes
    "see why it ended: the logs of {host}, its memory; then run again": "请查明其退出原因：{host} 的日志及内存；然后重跑",
    "see why {host} went away (power, network, out of memory), then run again": (
        "查明 {host} 为何消失（断电、网络、内存耗尽），然后重新运行"
    ),
    "use fewer connections per machine, or a machine with more memory": "减少每台机器的连接数，或换用内存更大的机器",
    "raise fs.file-max with `inv tune`": "用 `inv tune` 调大 fs.file-max",
    "raise net.ipv4.tcp_mem with `inv tune`": "用 `inv tune` 调大 net.ipv4.tcp_mem",
    "raise net.netfilter.nf_conntrack_max, or exempt the port from tracking (NOTRACK)": (
        "调大 net.netfilter.nf_conntrack_max，或让该端口不经连接跟踪（NOTRACK）"
    ),
    "raise the server's nofile limit (`inv tune`, then `inv deploy-server`) or give it more worker processes": (
        "调大服务端的 nofile 限制（先 `inv tune`，再 `inv deploy-server`），或增加工作进程"
    ),
    "`inv deploy-server --max-connections {count}`": "`inv deploy-server --max-connections {count}`",
    "the server's program is stuck or too slow: see its log and its CPU": (
        "服务端程序卡住或太慢：请看它的日志与 CPU"
    ),
    "a longer queue only hides it": "加长队列只会掩盖问题",
    "have the server listen with a longer backlog, or connect more slowly (--rate)": (
        "让服务端以更大的 backlog 监听，或放慢建连（--rate）"
    ),
    "raise net.core.somaxconn with `inv tune`, then start the server anew, or connect more slowly (--rate)": (
        "用 `inv tune` 调大 net.core.somaxconn 后重新启动服务端，或放慢建连（--rate）"
    ),
    "look for memory, a security module or a route back that is missing on the server": (
        "检查服务端的内存、安全模块，以及是否缺少回程路由"
    ),
    "raise net.ipv4.tcp_max_syn_backlog and net.core.somaxconn with `inv tune`, or connect more slowly (--rate)": (
        "用 `inv tune` 调大 net.ipv4.tcp_max_syn_backlog 与 net.core.somaxconn，或放慢建连（--rate）"
    ),
    "raise net.core.netdev_max_backlog with `inv tune`, or spread the interface's interrupts": (
        "用 `inv tune` 调大 net.core.netdev_max_backlog，或把网卡中断分散到多个 CPU"
    ),
    "more processors, or more hosts": "增加处理器，或增加主机",
    "more processors, or more hosts: server and clients share this machine": (
        "增加处理器，或增加主机：服务端与客户端共用这台机器"
    ),
    "raise nofile on the client host with `inv tune`": "在客户端主机上用 `inv tune` 调大 nofile",
    "give more --source addresses, or widen ip_local_port_range with `inv tune`": (
        "用 --source 提供更多源地址，或用 `inv tune` 扩大 ip_local_port_range"
    ),
    "use fewer connections per host, or more hosts": "减少每台主机的连接数，或增加主机",
    "start the server on {target}, or correct the target": "在 {target} 上启动服务端，或改正目标地址",
    "look for a full accept queue (server's backlog, net.core.somaxconn), SYN drops or a firewall at {target}": (
        "检查 {target} 的全连接队列是否已满（服务端的 backlog、net.core.somaxconn）、有无丢弃 SYN 或防火墙拦截"
    ),
    "the kernel of {target} accepted: check that its program accepts and replies, and that no packets are lost on the way": (
        "{target} 的内核已接受连接：检查其程序是否接受并应答，以及途中是否丢包"
    ),
    "its program gives one message the reply of another: look for buffers that connections share": (
        "服务端程序把一条消息的应答给了另一条：检查是否有多条连接共用的缓冲区"
    ),
    "see the sample: the server answers otherwise than was expected": "见样例：服务端的应答与预期不同",
    "see the sample: --tls-ca, --tls-name, --tls-insecure, or {target} does not speak TLS": (
        "见样例：--tls-ca、--tls-name、--tls-insecure，或 {target} 并不使用 TLS"
    ),
    "see the sample: what came from {target} is not the TLS that was agreed on": (
        "见样例：{target} 发来的内容不是协商好的 TLS"
    ),
    "see why it ended: what the client wrote to stderr, the kernel's log; then run again": (
        "请查明其退出原因：客户端写到 stderr 的内容、内核日志；然后重跑"
    ),
    "look at the route to {target}, and at firewalls on the way and here": (
        "检查到 {target} 的路由，以及途中和本机的防火墙"
    ),
    "see the server's log, its idle and keep-alive limits, its own connection limit and its nofile limit (`inv server-status`)": (
        "检查服务端的日志、它的空闲与 keep-alive 限制、它自身的连接上限与 nofile 限制（`inv server-status`）"
    ),
    # ---- warnings of the clients
    "its clock is {seconds} s ahead of the controller's": "其时钟比控制端快 {seconds} 秒",
    "its clock is {seconds} s behind the controller's": "其时钟比控制端慢 {seconds} 秒",
    "its times were moved": "其时间已按控制端校正",
    "was stopped after {seconds} s of hold": "在保持 {seconds} 秒后被停止",
    "the asked rate of {asked} connects/s was not reached in the {where}: {got}": (
        "没有达到要求的 {asked} 建连/秒（{where}）：{got}"
    ),
    "{busy} of {of} workers kept a processor busy for {share}% of the time or more: the generator, not the server, "
    "may have been the limit (more --workers or hosts)": (
        "{of} 个工作进程中有 {busy} 个在 {share}% 以上的时间里占满一个处理器："
        "极限可能在压测端而不在服务端（请增加 --workers 或主机）"
    ),
    "a worker was busy or held up for {ms} ms in one turn: latencies up to that are the generator's own": (
        "有工作进程在一轮中忙碌或停顿了 {ms} 毫秒：不超过此值的延迟可能来自压测端自身"
    ),
    "{count} connects took 1 s or more, a SYN retransmission: a full accept queue, or lost packets": (
        "{count} 次建连用了 1 秒以上，即发生了 SYN 重传：全连接队列已满，或有丢包"
    ),
    # ---- reasons why something could not be read
    "connection lost: {reason}": "连接中断：{reason}",
    "no sign of life for {seconds} s": "{seconds} 秒没有动静",
    "{doing} took longer than {seconds} s": "{doing} 超过了 {seconds} 秒",
    "the agent ended during {doing}": "代理程序在 {doing} 期间结束",
    "the agent did not start: {reason}": "代理程序没有启动：{reason}",
    "ENOENT: No such file or directory": "ENOENT：没有这个文件或目录",
    "ENOENT: No such file or directory: {path}": "ENOENT：没有这个文件或目录：{path}",
    "EACCES: Permission denied": "EACCES：权限不足",
    "EACCES: Permission denied: {path}": "EACCES：权限不足：{path}",
    "line limit of {n}": "行数上限 {n}",
    "time limit of {seconds} s": "时间上限 {seconds} 秒",
    "size limit of {n} bytes": "大小上限 {n} 字节",
    "this inventory has no such host": "当前的主机清单中没有这台主机",
    "no pid file was given for this host": "没有为这台主机指定 pid 文件",
    "no log file was given for this host": "没有为这台主机指定日志文件",
    "{path} holds no process id": "{path} 中没有进程号",
    "process {pid} named by {path} is not running": "{path} 中的进程 {pid} 没有在运行",
    "the answer holds no observation": "应答中没有观测数据",
    "the client left no result": "客户端没有留下结果",
    # ---- notes of tuning
    "cannot be written on this host": "在这台主机上不可写",
    "this kernel has no such key here": "这里的内核没有这个参数",
    # ---- kernel log
    "SYN queue full: net.ipv4.tcp_max_syn_backlog, net.core.somaxconn": (
        "半连接队列已满：net.ipv4.tcp_max_syn_backlog、net.core.somaxconn"
    ),
    "connection tracking table full": "连接跟踪表已满",
    "net.ipv4.tcp_mem reached": "达到 net.ipv4.tcp_mem",
    "net.ipv4.tcp_max_orphans reached": "达到 net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_tw_buckets reached": "达到 net.ipv4.tcp_max_tw_buckets",
    "fs.file-max reached": "达到 fs.file-max",
    "net.ipv4.neigh.default.gc_thresh3 reached": "达到 net.ipv4.neigh.default.gc_thresh3",
    "memory ran out, a process was killed": "内存耗尽，有进程被杀死",
    "the kernel could not get memory": "内核申请不到内存",
    "a network interface failed": "网络接口故障",
    # ---- refused plans
    "{host}: {n} connections need as many source ports, but {who} allows {usable}: {origin} is {range}, less {reserved} reserved and {busy} busy": (
        "{host}：{n} 条连接需要同样多的源端口，而 {who} 只允许 {usable} 个：{origin} 为 {range}，其中保留 {reserved} 个、已占用 {busy} 个"
    ),
    "give at least {n} source addresses (--source IP,IP,...).": "请至少提供 {n} 个源地址（--source IP,IP,...）。",
    "give at least {n} source addresses (--source IP,IP,...), or {m} after `inv tune` has widened the range.": (
        "请至少提供 {n} 个源地址（--source IP,IP,...），或在 `inv tune` 扩大端口范围之后提供 {m} 个。"
    ),
    "widen the range with `inv tune` on this host, or give at least {n} source addresses (--source IP,IP,...).": (
        "请在这台主机上用 `inv tune` 扩大端口范围，或至少提供 {n} 个源地址（--source IP,IP,...）。"
    ),
    "{host}: {n} connections in {workers} workers need {each} open files each, but the limit can only reach {limit}": (
        "{host}：{n} 条连接分给 {workers} 个工作进程，每个需要 {each} 个打开文件，而限制最多只能到 {limit}"
    ),
    "raise the hard limit with `inv tune` on this host (limits.d, a new login).": (
        "请在这台主机上用 `inv tune` 调大硬限制（limits.d，重新登录后生效）。"
    ),
    "choose other source ports (--ports A-B).": "请选择其他源端口（--ports A-B）。",
    "{host}: {n} connections need {need} {what}, but {have} are free, enough for {allowed} connections": (
        "{host}：{n} 条连接需要 {need} {what}，而可用的只有 {have}，够 {allowed} 条连接使用"
    ),
    "bytes of memory": "字节内存",
    "conntrack entries": "个连接跟踪条目",
    "worker processes": "个工作进程",
    "open files (fs.file-max)": "个打开文件（fs.file-max）",
    "use fewer connections or more client hosts.": "请减少连接数，或增加客户端主机。",
    "{host}: nothing listens on port {port}: {fix}": "{host}：端口 {port} 上没有程序在监听：{fix}",
    "start the server with `inv deploy-server`": "用 `inv deploy-server` 启动服务端",
    "{host}: the server can hold {n} connections, {wanted} are asked: {fix}": (
        "{host}：服务端最多能保持 {n} 条连接，而要求 {wanted} 条：{fix}"
    ),
    "the plan was refused, nothing was started: {reason}": "计划被拒绝，没有启动任何程序：{reason}",
}

TABLE = OURS | OUTSIDE
