// AXI4-Lite master, for benches: a write or a read at a time, each of the five channels with pauses of its own.
//
// An access is asked for by counting ``writes`` or ``reads`` up, with ``address`` (and ``value``) beside it until
// ``written`` or ``done_reads`` follows; ``response`` and ``answer`` are those of the last one. Ends the simulation on
// a response that nobody asked for, or that changes or goes while it waits. What is not valid is x.

module eb_axi_lite_master (
    input  wire        aclk,
    input  wire        aresetn,
    input  wire [7:0]  pauses,
    input  wire [31:0] seed,
    input  wire [31:0] writes,
    input  wire [31:0] reads,
    input  wire [11:0] address,
    input  wire [31:0] value,
    output reg  [31:0] written,
    output reg  [31:0] done_reads,
    output reg  [1:0]  response,
    output reg  [31:0] answer,
    output wire [11:0] awaddr,
    output wire [2:0]  awprot,
    output reg         awvalid,
    input  wire        awready,
    output wire [31:0] wdata,
    output wire [3:0]  wstrb,
    output reg         wvalid,
    input  wire        wready,
    input  wire [1:0]  bresp,
    input  wire        bvalid,
    output reg         bready,
    output wire [11:0] araddr,
    output wire [2:0]  arprot,
    output reg         arvalid,
    input  wire        arready,
    input  wire [31:0] rdata,
    input  wire [1:0]  rresp,
    input  wire        rvalid,
    output reg         rready
);
    wire aw_go, w_go, b_go, ar_go, r_go;
    eb_pauses #(.CHANNELS(3)) of_writes(
        .aclk(aclk), .aresetn(aresetn), .pauses(pauses), .seed(seed), .go({b_go, w_go, aw_go}));
    eb_pauses #(.CHANNELS(2)) of_reads(
        .aclk(aclk), .aresetn(aresetn), .pauses(pauses), .seed(seed + 32'd1000), .go({r_go, ar_go}));

    reg [31:0] aw_taken, w_taken, ar_taken;
    reg b_held, r_held;
    reg [1:0] b_was;
    reg [33:0] r_was;
    initial begin
        {awvalid, wvalid, bready, arvalid, rready} = 0;
        {aw_taken, w_taken, ar_taken, written, done_reads, b_held, r_held} = 0;
    end
    assign awaddr = awvalid ? address : 12'hxxx;
    assign awprot = awvalid ? 3'd0 : 3'bxxx;
    assign wdata = wvalid ? value : 32'hxxxxxxxx;
    assign wstrb = wvalid ? 4'hf : 4'hx;
    assign araddr = arvalid ? address : 12'hxxx;
    assign arprot = arvalid ? 3'd0 : 3'bxxx;

    task fail(input [8*48-1:0] rule);
        begin
            $display("FAIL: s_axi: %0s, address %h", rule, address);
            $fatal(1);
        end
    endtask

    always @(posedge aclk)
        if (aresetn) begin
            if (!awvalid)
                awvalid <= aw_taken != writes && aw_go;
            else if (awready) begin
                awvalid <= 0;
                aw_taken <= aw_taken + 1;
            end
            if (!wvalid)
                wvalid <= w_taken != writes && w_go;
            else if (wready) begin
                wvalid <= 0;
                w_taken <= w_taken + 1;
            end
            if (!arvalid)
                arvalid <= ar_taken != reads && ar_go;
            else if (arready) begin
                arvalid <= 0;
                ar_taken <= ar_taken + 1;
            end
            bready <= b_go;
            rready <= r_go;
            if ((^{bvalid, rvalid}) === 1'bx)
                fail("bvalid or rvalid is unknown");
            if (b_held && (!bvalid || bresp !== b_was))
                fail("a response was withdrawn or changed");
            if (r_held && (!rvalid || {rresp, rdata} !== r_was))
                fail("an answer was withdrawn or changed");
            b_held <= bvalid && !bready;
            b_was <= bresp;
            r_held <= rvalid && !rready;
            r_was <= {rresp, rdata};
            if (bvalid && (aw_taken == written || w_taken == written))
                fail("a response before its write was taken");
            if (rvalid && ar_taken == done_reads)
                fail("an answer before its read was taken");
            if (bvalid && bready) begin
                written <= written + 1;
                response <= bresp;
            end
            if (rvalid && rready) begin
                done_reads <= done_reads + 1;
                response <= rresp;
                answer <= rdata;
            end
        end
endmodule
