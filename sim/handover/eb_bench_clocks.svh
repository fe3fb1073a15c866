// What every bench of these begins with: clocks, reset, and the options of its command line.

    reg aclk = 0;
    reg aresetn = 0;
    always #5 aclk = ~aclk;

    // The clock of the ports that may have their own: aclk, or that one.
`ifdef EB_TWO_CLOCKS
    reg bus_aclk = 0;
    wire bus_aresetn = aresetn;
    integer bus_half;
    initial begin
        if (!$value$plusargs("bus=%d", bus_half) || bus_half < 1)
            bus_half = 7;
        // (Of "#bus_half" Verilator warns that it may be 0.)
        forever begin
            repeat (bus_half) #1;
            bus_aclk = ~bus_aclk;
        end
    end
`else
    wire bus_aclk = aclk;
`endif

    // Where the clocks have an edge at the same time, both see the end of reset at their next one.
    integer quiet = 0;
    always @(posedge bus_aclk) begin
        quiet <= quiet + 1;
        if (quiet == 40)
            aresetn <= 1;
    end

    integer pauses, seed;
    reg [8*256-1:0] vcd;
    initial begin
        if (!$value$plusargs("pauses=%d", pauses))
            pauses = 0;
        if (pauses < 0 || pauses > 255) begin
            $display("FAIL: +pauses=%0d is not 0 to 255", pauses);
            $fatal(1);
        end
        if (!$value$plusargs("seed=%d", seed))
            seed = 1;
        if ($value$plusargs("vcd=%s", vcd)) begin
            $dumpfile(vcd);
            $dumpvars;
        end
    end
